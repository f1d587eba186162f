"""What fetching experts ahead saves and costs: predictors compared over one cache and link.

Half of the steps are learned on, the rest is judged. Without a link, fetches come at once, and
hits and bytes are all there is to see; with one, what comes too late is counted as a miss.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cache import Scope
from moeprof.cache.prefetch import PREDICTORS, PrefetchReplays, replay_prefetch
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.ranges import parse_numbers, parse_shares
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.hardware import hardware_files
from moeprof.report.text.prefetch import prefetch_text
from moeprof.trace import Phase


def run(
    trace: TraceArgument,
    predictor: Annotated[
        str, typer.Option(metavar="P,P", help=f"all, or some of {', '.join(PREDICTORS)}.")
    ] = "all",
    slots: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Cache sizes: per layer, in all for scope global."),
    ] = None,
    fraction: Annotated[
        str | None, typer.Option(metavar="F,F", help="Cache sizes as shares of all experts.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Experts named ahead of an event; the model's top-k.")
    ] = None,
    lookahead: Annotated[int, typer.Option(help="Layers between naming and needing.")] = 1,
    policy: Annotated[str, typer.Option(help="Who makes room in the cache.")] = "lru",
    scope: Annotated[Scope, typer.Option(help="Slots per layer, or one pool.")] = Scope.LAYER,
    link_experts_per_layer: Annotated[
        float | None,
        typer.Option(metavar="X", help="Experts that come while one layer computes; else at once."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="HW", help="Machine whose host link they come over.")
    ] = None,
    layer_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="How long a layer computes, for --hardware.")
    ] = None,
    recall: Annotated[
        float, typer.Option(help="Of predictor recall: share of needed experts that it names.")
    ] = 0.7,
    phase: Annotated[str, typer.Option(help="Tokens to replay: all, prefill or decode.")] = "all",
    precision: Annotated[str, typer.Option(help="Weight format that a fetch reads.")] = "bf16",
    fit: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the steps that is learned on.")
    ] = 0.5,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Batch the requests anew, N at a time, as vLLM would."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens of a step with --max-num-seqs; prompts come in chunks.")
    ] = 8192,
    seed: Annotated[int, typer.Option(help="Of predictor recall and policy random.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[PrefetchReplays]:
    """Run the command."""
    replays = replay_prefetch(
        open_and_warn(trace, quiet),
        predictor=predictor if predictor == "all" else predictor.split(","),
        slots=parse_numbers(slots, "--slots") or [],
        fraction=parse_shares(fraction, "--fraction"),
        width=width,
        lookahead=lookahead,
        policy=policy,
        scope=scope,
        link_experts_per_layer=link_experts_per_layer,
        hardware=hardware,
        layer_ms=layer_ms,
        recall=recall,
        phase=Phase.parse(phase),
        precision=precision,
        fit=fit,
        seed=seed,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    machines = hardware_files(hardware) if hardware else []
    return Answer(replays, prefetch_text, json, inputs=[trace, *machines])
