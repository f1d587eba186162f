"""Is a cache too small or its policy wrong, and is it at a cliff: one budget, in words."""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cache import CacheVerdict, Scope, judge_cache
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.replay import verdict_text
from moeprof.trace import Phase


def run(
    trace: TraceArgument,
    slots: Annotated[int, typer.Option(help="Slots per layer; in all for scope global.")],
    policy: Annotated[str, typer.Option(help="The policy that is judged.")] = "lru",
    scope: Annotated[Scope, typer.Option(help="Slots per layer, or one pool.")] = Scope.LAYER,
    phase: Annotated[str, typer.Option(help="Tokens to replay: all, prefill or decode.")] = "all",
    precision: Annotated[str, typer.Option(help="Weight format that a miss reads.")] = "bf16",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[CacheVerdict]:
    """Run the command."""
    verdict = judge_cache(
        open_and_warn(trace, quiet),
        slots=slots,
        policy=policy,
        scope=scope,
        phase=Phase.parse(phase),
        precision=precision,
    )
    return Answer(verdict, verdict_text, json, inputs=[trace])
