"""Write a trace as what other programs read. docs/formats.md lists the formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.progress import Progress
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.conversion import export_text
from moeprof.trace.formats import EXPORTS, ExportResult, export_trace


def run(
    trace: TraceArgument,
    format: Annotated[str, typer.Option(metavar="F", help=", ".join(EXPORTS) + ".")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ExportResult]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    with Progress(quiet=quiet).stage("exporting"):
        result = export_trace(opened, output, format, force=force)
    return Answer(result, export_text, json, inputs=[trace])
