"""Why a cache misses: is it the policy, or do more experts want to be there than fit?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moeprof.cache.curve import LruCurve, lru_curve
from moeprof.cache.replay import replay_cache
from moeprof.cache.requests import Scope, parse_scope
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Phase, Trace

ENOUGH = 0.9  # hit ratio from which on there is nothing to mend
WORKING_SET = 0.5  # where even the optimum hits less than this, no policy can mend it
POLICY_SHARE = 0.75  # a policy that reaches less of the optimum's hits than this fails
CLIFF_POINTS = 0.05  # hit ratio that a tenth more slots bring, from which on it is a cliff
PLATEAU_POINTS = 0.01  # below which it is a plateau


class Failure(StrEnum):
    """What is to blame for the misses."""

    NONE = "none"
    WORKING_SET = "working set"
    POLICY = "policy"
    BOTH = "both"


class Terrain(StrEnum):
    """What a little more memory does."""

    CLIFF = "cliff"
    SLOPE = "slope"
    PLATEAU = "plateau"


@dataclass(frozen=True)
class CacheVerdict(Result):
    """One budget judged. Thresholds are this module's constants; `words` says it in sentences.

    `optimum` is Belady with bypass, which no policy beats under this contract.
    """

    policy: str
    scope: Scope
    contract: str
    slots: int
    hit_ratio: float
    optimum: float
    failure: Failure
    terrain: Terrain
    cycles: float  # slots of all layers over the token cycle
    tenth_more: float  # hit ratio that LRU gains with a tenth more slots
    tenth_less: float  # hit ratio that it loses with a tenth less
    gib_misses_per_token: float | None  # misses a token that one more GiB of slots saves LRU
    gib_bytes_per_token: float | None  # bytes a token that it saves
    gib_misses_by_layer: dict[int, float] | None  # a token, where one layer alone has the GiB
    gib_bytes_by_layer: dict[int, float] | None
    tokens: int
    words: str


def judge_cache(
    trace: Trace,
    *,
    slots: int,
    policy: str = "lru",
    scope: Scope | str = Scope.LAYER,
    phase: Phase | None = None,
    precision: str = "bf16",
    fit: float | None = None,
) -> CacheVerdict:
    """Judge a cache of `slots` (per layer, in all for scope global) under contract atomic.

    Raises what `replay_cache` and `lru_curve` raise, and InputError for scope quota.
    """
    scope = parse_scope(scope)
    if scope is Scope.QUOTA:
        raise InputError("a verdict is on equal sizes: scope layer or global, not quota")
    replays = replay_cache(
        trace,
        policy=[policy, "belady-bypass"],
        slots=slots,
        scope=scope,
        phase=phase,
        precision=precision,
        fit=fit,
    )
    curve = lru_curve(trace, scope=scope, phase=phase, precision=precision)
    hit, optimum = replays.rows[0].hit_ratio, replays.rows[1].hit_ratio
    more, less = _moved(curve, slots, 1.1), _moved(curve, slots, 0.9)
    layers = 1 if scope is Scope.GLOBAL else replays.layers
    failure = _failure(hit, optimum)
    terrain = _terrain(max(more, -less))
    cycles = slots * layers / replays.token_cycle
    misses, read = _gib_more(curve, slots, layers)
    by_layer = _gib_by_layer(trace, curve, slots)
    return CacheVerdict(
        policy=policy,
        scope=scope,
        contract=replays.rows[0].contract,
        slots=slots,
        hit_ratio=hit,
        optimum=optimum,
        failure=failure,
        terrain=terrain,
        cycles=cycles,
        tenth_more=more,
        tenth_less=less,
        gib_misses_per_token=misses,
        gib_bytes_per_token=read,
        gib_misses_by_layer=by_layer,
        gib_bytes_by_layer=_scaled(by_layer, curve.bytes_per_expert),
        tokens=replays.tokens,
        words=_words(policy, scope, hit, optimum, failure, terrain, cycles, more, less),
    )


def _moved(curve: LruCurve, slots: int, factor: float) -> float:
    """Hit ratio that LRU gains when its slots change by `factor`, by one at least."""
    step = max(abs(round(slots * (factor - 1))), 1) * (1 if factor > 1 else -1)
    return curve.at(max(slots + step, 0)) - curve.at(slots)


def _gib_more(curve: LruCurve, slots: int, layers: int) -> tuple[float | None, float | None]:
    """Misses and bytes a token that one more GiB, shared evenly, saves LRU."""
    if curve.bytes_per_expert is None:
        return None, None
    extra = 2**30 / curve.bytes_per_expert / layers  # slots, per layer for scope layer
    at = min(slots, len(curve.slots))
    until = min(max(round(at + extra), at + 1), len(curve.slots))
    if until == at:
        return 0.0, 0.0
    misses = curve.misses_per_token[at - 1] - curve.misses_per_token[until - 1]
    saved = misses * min(extra / (until - at), 1.0)
    return saved, saved * curve.bytes_per_expert


def _gib_by_layer(trace: Trace, curve: LruCurve, slots: int) -> dict[int, float] | None:
    """Misses a token that LRU is spared where one layer alone has a GiB more, by layer index."""
    if curve.bytes_per_expert is None or curve.hits_by_layer is None:
        return None
    most = curve.hits_by_layer.shape[1]
    at, extra = min(slots, most), 2**30 / curve.bytes_per_expert
    until = min(max(round(at + extra), at + 1), most)
    share = min(extra / max(until - at, 1), 1.0) / curve.tokens
    saved = (curve.hits_by_layer[:, until - 1] - curve.hits_by_layer[:, at - 1]) * share
    return dict(zip(trace.layers, saved.tolist(), strict=True))


def _scaled(by_layer: dict[int, float] | None, factor: int | None) -> dict[int, float] | None:
    if by_layer is None or factor is None:
        return None
    return {layer: value * factor for layer, value in by_layer.items()}


def _failure(hit: float, optimum: float) -> Failure:
    if hit >= ENOUGH:
        return Failure.NONE
    working_set, policy = optimum < WORKING_SET, hit < POLICY_SHARE * optimum
    if working_set and policy:
        return Failure.BOTH
    if working_set:
        return Failure.WORKING_SET
    return Failure.POLICY if policy else Failure.NONE


def _terrain(points: float) -> Terrain:
    if points >= CLIFF_POINTS:
        return Terrain.CLIFF
    return Terrain.PLATEAU if points < PLATEAU_POINTS else Terrain.SLOPE


_FAILURES = {
    Failure.NONE: "Neither the policy nor the working set fails",
    Failure.WORKING_SET: "A working-set failure: more experts are wanted than fit, and no policy "
    "hits half of the reads",
    Failure.POLICY: "A policy failure: a better policy has room to gain at this size",
    Failure.BOTH: "Both fail: no policy hits half of the reads at this size, and this one stays "
    "far below the optimum",
}
_TERRAINS = {
    Terrain.CLIFF: "This is a cliff: a little more or less memory changes much",
    Terrain.SLOPE: "More memory pays steadily",
    Terrain.PLATEAU: "This is a plateau: a little more memory buys next to nothing",
}


def _words(
    policy: str,
    scope: Scope,
    hit: float,
    optimum: float,
    failure: Failure,
    terrain: Terrain,
    cycles: float,
    more: float,
    less: float,
) -> str:
    """The verdict in sentences."""
    below = (
        " Below one token cycle a global LRU finds nothing, since every expert goes before its "
        "layer comes round again."
        if scope is Scope.GLOBAL and cycles < 1
        else ""
    )
    return (
        f"{_FAILURES[failure]}: {policy} hits {hit:.1%} and the optimum {optimum:.1%}. "
        f"{_TERRAINS[terrain]}: a tenth more slots moves LRU's hit ratio by {100 * more:+.1f} "
        f"points, a tenth less by {100 * less:+.1f}. The slots are {cycles:.2f} of one token "
        f"cycle.{below}"
    )
