"""Turn recordings of other programs into a trace. The format is recognised by content.

What was left out is counted by reason; what the files do not say stays unknown. docs/formats.md
lists the formats, what each keeps, and the plain CSV, JSONL and NPZ for your own scripts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.report.text.conversion import import_text
from moeprof.trace.formats import ImportResult, import_trace


def run(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="One recording, in order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    format: Annotated[
        str | None, typer.Option(metavar="F", help="The format, where content does not show it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Native layers and number of experts.")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="Experts a layer, without a model.")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Experts a token, for sources that count.")
    ] = None,
    keep_warmup: Annotated[
        bool, typer.Option("--keep-warmup", help="Keep runs of equal tokens.")
    ] = False,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Keep token ids, where there are any.")
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ImportResult]:
    """Run the command."""
    with Progress(quiet=quiet).stage("importing"):
        result = import_trace(
            files,
            output,
            format=format,
            model=model,
            experts=experts,
            top_k=top_k,
            keep_warmup=keep_warmup,
            token_ids=token_ids,
            force=force,
        )
    inputs = [file for file in files if file.is_file()]
    return Answer(result, import_text, json, inputs=[*inputs, *files_of(model)])
