"""Write the part of a trace that meets every condition as a trace of its own.

Requests, steps and layers are numbers and ranges, as 0-9,12.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.ranges import parse_numbers, parse_span
from moeprof.cli.traces import TraceArgument
from moeprof.report.text.conversion import edit_text
from moeprof.trace import EditResult, slice_trace


def run(
    trace: TraceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    requests: Annotated[str | None, typer.Option(metavar="N,N-N", help="These requests.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Requests so labelled; repeatable.")
    ] = None,
    phase: Annotated[str, typer.Option(help="prefill, decode or all.")] = "all",
    steps: Annotated[
        str | None, typer.Option(metavar="N-N", help="From the first to the last.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="N,N-N", help="These native layers.")
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[EditResult]:
    """Run the command."""
    result = slice_trace(
        trace,
        output,
        requests=parse_numbers(requests, "--requests"),
        labels=label or None,
        phase=phase,
        steps=parse_span(steps, "--steps"),
        layers=parse_numbers(layers, "--layers"),
        force=force,
    )
    return Answer(result, edit_text, json, inputs=[trace])
