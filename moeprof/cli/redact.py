"""Write a trace without token ids and without the labels and names of requests.

Expert ids stay, and they alone reveal most of the text: to share load without it, export load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument
from moeprof.report.text.conversion import edit_text
from moeprof.trace import EditResult, redact_trace


def run(
    trace: TraceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[EditResult]:
    """Run the command."""
    return Answer(redact_trace(trace, output, force=force), edit_text, json, inputs=[trace])
