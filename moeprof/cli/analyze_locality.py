"""Reuse of experts over time and over a batch, and the cache that it lets one hope for.

Repeats by lag, working sets, distinct experts by batch and by chunk of a prompt, and local routing
consistency (SRP, SCH). A batch of B is a token each of B different requests of the recording.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from moeprof.analysis import LocalityResult, analyze_locality
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.locality import locality_text


def run(
    trace: TraceArgument,
    seed: Annotated[int, typer.Option(help="Of resamples and of the sets of requests.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[LocalityResult]:
    """Run the command."""
    result = analyze_locality(open_and_warn(trace, quiet), seed=seed)
    return Answer(result, partial(locality_text, trace=str(trace)), json, inputs=[trace])
