"""Write a trace in the schema of this moeprof, in full batches and with fresh checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument
from moeprof.report.text.conversion import edit_text
from moeprof.trace import EditResult, migrate_trace


def run(
    trace: TraceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[EditResult]:
    """Run the command."""
    return Answer(migrate_trace(trace, output, force=force), edit_text, json, inputs=[trace])
