"""Experts that go together: chosen by the same token in a layer, or from a layer to the next.

Against chance at the same loads, requests judged by other requests. Above 150,000 tokens whole
requests are drawn, by --seed.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from moeprof.analysis import AffinityResult, analyze_affinity
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.affinity import affinity_text
from moeprof.trace import Phase


def run(
    trace: TraceArgument,
    phase: Annotated[str, typer.Option(help="Tokens to count: all, prefill or decode.")] = "all",
    seed: Annotated[int, typer.Option(help="Of samples, communities and intervals.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[AffinityResult]:
    """Run the command."""
    result = analyze_affinity(open_and_warn(trace, quiet), phase=Phase.parse(phase), seed=seed)
    return Answer(result, partial(affinity_text, path=str(trace)), json, inputs=[trace])
