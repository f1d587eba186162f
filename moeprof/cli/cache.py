"""Hits, misses and bytes a token of expert caches: any policy, size and scope, one contract.

A miss reads one expert. `cache curve` gives LRU at every size, `cache verdict` says in words
whether a budget fails for its policy or for its size.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cache import CONTRACTS, POLICIES, CacheReplays, Scope, replay_cache
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.limits import parse_bytes
from moeprof.cli.ranges import parse_by_layer, parse_numbers, parse_shares
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.replay import replays_text
from moeprof.trace import Phase, Trace


def run(
    trace: TraceArgument,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="P,P",
            help=f"all, or some of {', '.join(POLICIES)}; the contract's own if not given.",
        ),
    ] = None,
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Cache sizes: per layer, in all for scope global, mean for quota."
        ),
    ] = None,
    fraction: Annotated[
        str | None, typer.Option(metavar="F,F", help="Cache sizes as shares of all experts.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="BYTES", help="One size in bytes for all layers, 20GiB.")
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(help="Slots per layer, one pool, or shared out by need; layer by default."),
    ] = None,
    contract: Annotated[
        str, typer.Option(metavar="C,C", help=f"Rules of the engine: {', '.join(CONTRACTS)}.")
    ] = "atomic",
    across_contracts: Annotated[
        bool, typer.Option("--across-contracts", help="Show several contracts side by side.")
    ] = False,
    max_inserts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Misses of a step and layer that come in at most."),
    ] = None,
    phase: Annotated[str, typer.Option(help="Tokens to replay: all, prefill or decode.")] = "all",
    precision: Annotated[str, typer.Option(help="Weight format that a miss reads.")] = "bf16",
    expert_bytes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYERS:N", help="Bytes of an expert, 0-5,8:3059712; may be repeated."
        ),
    ] = None,
    fit: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Count the steps after this share alone; 0.5 where something is fitted.",
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Batch the requests anew, N at a time, as vLLM would."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens of a step with --max-num-seqs; prompts come in chunks.")
    ] = 8192,
    seed: Annotated[int, typer.Option(help="Of policy random.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[CacheReplays]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    replays = replay_cache(
        opened,
        policy=_named(policy, contract.split(","), opened),
        slots=parse_numbers(slots, "--slots") or [],
        fraction=parse_shares(fraction, "--fraction"),
        budget_bytes=parse_bytes(budget, "--budget"),
        scope=scope,
        contract=contract.split(","),
        across_contracts=across_contracts,
        max_inserts=max_inserts,
        phase=Phase.parse(phase),
        precision=precision,
        expert_bytes=parse_by_layer(expert_bytes, "--expert-bytes"),
        fit=fit,
        seed=seed,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    return Answer(replays, replays_text, json, inputs=[trace])


def _named(policy: str | None, contracts: list[str], trace: Trace) -> list[str] | None:
    """The policies asked for: all are those that the contract has and the recording feeds."""
    if policy != "all":
        return None if policy is None else policy.split(",")
    own = CONTRACTS[contracts[0]].policies if contracts[0] in CONTRACTS else ()
    every = list(own or POLICIES)
    return [name for name in every if name != "mrs" or trace.manifest.weights]
