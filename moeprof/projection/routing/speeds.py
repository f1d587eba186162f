"""Redundancy and mixes of domains in tokens/s: what a map is worth once a step has seconds.

    tok/s = tokens of a step / seconds(tokens, distinct experts, busiest rank's assignments)

with means over layers of what the busiest rank reads and computes on tokens that the map was not
fitted on. Steps are of one size, all of decode.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.errors import InputError
from moeprof.placement.mix import MixResult
from moeprof.placement.sweep import RedundancySweep
from moeprof.placement.windows import SplitBy, split_windows
from moeprof.projection.routing.recorded import TraceRouting
from moeprof.projection.routing.step_load import RoutingModel, Seconds
from moeprof.quantity import Provenance
from moeprof.result import Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class PlacedSpeed(Result):
    """A step through one map, and what that comes to. `gain` is tok_s over the first row's, - 1."""

    name: str  # how many are redundant, or the domain
    most_distinct: float
    busiest_assignments: float
    imbalance: float
    tok_s: float
    gain: float
    provenance: Provenance  # of the load


def redundancy_speeds(
    sweep: RedundancySweep, trace: Trace, seconds: Seconds, *, tokens: int | None = None
) -> list[PlacedSpeed]:
    """Every row of `sweep`, made of `trace`, in tokens/s of steps of `tokens` (None: its batch).

    Raises InputError where the sweep's steps are as recorded and `tokens` is not given.
    """
    count = sweep.batch if tokens is None else tokens
    if count is None:
        raise InputError("the sweep's steps are as recorded: give the tokens of a step")
    routings = [
        (f"{row.redundant}", TraceRouting(trace, row.placement, share=sweep.share,
                                          keep=sweep.judged))
        for row in sweep.rows
    ]  # fmt: skip
    return _speeds(routings, count, sweep.gpus, seconds)


def mix_speeds(
    mix: MixResult, trace: Trace, seconds: Seconds, *, tokens: int
) -> dict[str, list[PlacedSpeed]]:
    """By domain: experts in order of id, then the map for the worst domain, on the same tokens."""
    test = split_windows(trace, by=SplitBy.REQUEST, seed=mix.seed).test
    speeds = {}
    for domain in mix.domains:
        keep = trace.label_code == trace.labels.index(domain)
        keep = keep if test is None else keep & test
        routings = [
            ("in order of id", TraceRouting(trace, keep=keep)),
            ("for the worst", TraceRouting(trace, mix.placement, keep=keep)),
        ]
        speeds[domain] = _speeds(routings, tokens, mix.gpus, seconds)
    return speeds


def _speeds(
    routings: list[tuple[str, TraceRouting]], tokens: int, ranks: int, seconds: Seconds
) -> list[PlacedSpeed]:
    rows: list[PlacedSpeed] = []
    for name, routing in routings:
        load = routing.load(tokens, ranks)
        tok_s = tok_s_of(routing, tokens, ranks, seconds)
        rows.append(
            PlacedSpeed(
                name=name,
                most_distinct=float(load.most_distinct.mean()),
                busiest_assignments=float(load.busiest_assignments.mean()),
                imbalance=load.imbalance,
                tok_s=tok_s,
                gain=tok_s / rows[0].tok_s - 1 if rows else 0.0,
                provenance=load.provenance,
            )
        )
    return rows


def tok_s_of(routing: RoutingModel, tokens: float, ranks: int, seconds: Seconds) -> float:
    """Tokens/s of decode steps of `tokens`. Raises InputError where a step takes no time."""
    taken = routing.load(tokens, ranks).mean_seconds(seconds)
    if not taken > 0:
        raise InputError(f"a step of {tokens} tokens takes {taken} s: a positive time is needed")
    return tokens / taken
