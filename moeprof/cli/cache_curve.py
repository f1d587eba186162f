"""Exact LRU hits at every cache size, in one pass; one token's cycle of experts is marked.

Contract 'atomic': the experts that one step needs in one layer are looked up together.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cache import LruCurve, Scope, lru_curve
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.curve import curve_text
from moeprof.trace import Phase


def run(
    trace: TraceArgument,
    scope: Annotated[Scope, typer.Option(help="Slots per layer, or one pool.")] = Scope.LAYER,
    phase: Annotated[str, typer.Option(help="Tokens to replay: all, prefill or decode.")] = "all",
    precision: Annotated[str, typer.Option(help="Weight format that a miss reads.")] = "bf16",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[LruCurve]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    curve = lru_curve(opened, scope=scope, phase=Phase.parse(phase), precision=precision)
    return Answer(curve, curve_text, json, inputs=[trace])
