"""Join traces of one model: the ranks of a launch, or runs made one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.report.text.conversion import merge_text
from moeprof.trace import MergeResult, merge_traces


def run(
    traces: Annotated[list[Path], typer.Argument(metavar="T...", help="Trace folders, in order.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[MergeResult]:
    """Run the command."""
    result = merge_traces(traces, output, force=force)
    return Answer(result, merge_text, json, inputs=traces)
