"""Replay of a cache that is filled ahead of need, over a link that takes its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import find_steps, rebatched_steps
from moeprof.cache.policies import POLICIES, load_policy
from moeprof.cache.prefetch.demand import Demand, bounded_chunks, gather_demand
from moeprof.cache.prefetch.link import Link, make_link
from moeprof.cache.prefetch.predictors.names import (
    PREDICTORS,
    Predictor,
    Question,
    choose_predictors,
    make_predictor,
)
from moeprof.cache.prefetch.results import PrefetchReplay, PrefetchReplays
from moeprof.cache.requests import Scope, expert_sizes, known_bytes, parse_scope, slot_counts
from moeprof.errors import InputError
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace

NONE = "none"  # the predictor that names nobody
# What a policy may have that this replay does not offer: token counts, gate weights, an order of
# hits and misses, and what prompts and new requests do to it.
_MORE_THAN_EVENTS = ("COUNTS_TOKENS", "READS_GATES", "HITS_FIRST", "prefill", "renew")


def replay_prefetch(
    trace: Trace,
    *,
    predictor: str | Sequence[str] = "previous-token",
    slots: int | Sequence[int] = (),
    fraction: float | Sequence[float] = (),
    width: int | None = None,
    lookahead: int = 1,
    policy: str = "lru",
    scope: Scope | str = Scope.LAYER,
    link_experts_per_layer: float | None = None,
    hardware: str | None = None,
    layer_ms: float | None = None,
    recall: float = 0.7,
    phase: Phase | None = None,
    precision: str | Mapping[Any, str] = "bf16",
    expert_bytes: Mapping[int, int] | None = None,
    fit: float = 0.5,
    seed: int = 0,
    events: bool = False,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = 8192,
) -> PrefetchReplays:
    """Replay `trace` through a cache under contract atomic that each predictor fills ahead.

    Once the experts of an event (a step in a layer) are known, the predictor names up to `width`
    (the model's top-k if None) for the event `lookahead` later. Those that are not there are
    fetched over a link that moves `link_experts_per_layer` while a layer computes (at once if
    None), or what `hardware`'s host link moves in `layer_ms`; `docs/prefetch.md` states the rules.
    `policy` is any that learns nothing beforehand and does not know the future; `slots`,
    `fraction`, `scope`, `precision`, `expert_bytes` and batches are those of `replay_cache`. The
    first `fit` of the steps are learned on and replayed without prefetch; the rest is counted.
    `recall` is that of predictor recall. `events` keeps the misses and stalls of every event.

    Raises InputError for what cannot be replayed, TraceError where the recording is damaged.
    """
    if not trace.tokens or not trace.layers:
        raise InputError(f"{trace}: holds no tokens to replay")
    names, scope = choose_predictors(predictor), _checked_scope(scope)
    check_policy(policy)
    sizes = expert_sizes(trace, precision, expert_bytes)
    if known_bytes(trace, expert_bytes) is not None:
        precision = "stated"
    counts = slot_counts(
        trace, scope, [slots] if isinstance(slots, int) else list(slots),
        [fraction] if isinstance(fraction, float | int) else list(fraction),
    )  # fmt: skip
    width = trace.top_k if width is None else width
    _check_numbers(trace, width, lookahead, recall)
    if max_num_seqs is None:
        steps = find_steps(trace, phase)
    else:
        steps = rebatched_steps(trace, max_num_seqs, max_num_batched_tokens, phase)
    if len(steps.starts) < 2 or not steps.starts[-1]:
        raise InputError(f"{trace}: holds no {Phase(phase or 0).name.lower()} tokens")
    first = _first_judged(fit, len(steps.starts) - 1, names)
    demand = gather_demand(trace, steps)
    question = Question(trace, steps, demand, first, lookahead, width, recall, seed)
    link = make_link(link_experts_per_layer, hardware, layer_ms, sizes)
    job = _Job(question, link, sizes, policy, scope, events)
    nobody = make_predictor("oracle", question._replace(width=0))
    made = dict(zip(names, map_threads(lambda name: _made(name, question), names), strict=True))
    refused = {name: one for name, one in made.items() if isinstance(one, InputError)}
    if refused and predictor != "all":
        raise next(iter(refused.values()))
    tasks: list[tuple[str, Any]] = [
        (NONE, nobody),
        *((n, p) for n, p in made.items() if n not in refused),
    ]
    parts = map_threads(lambda task: _rows(job, task[0], task[1], counts), tasks)
    rows = [row for part in parts for row in part]
    return PrefetchReplays(
        rows=rows,
        left_out={name: str(why) for name, why in refused.items()},
        width=width,
        lookahead=lookahead,
        link_experts_per_layer=link.rate,
        layer_ms=link.layer_ms,
        recall=recall,
        phase="all" if phase is None else phase.name.lower(),
        layers=demand.layers,
        experts=demand.size,
        steps=len(steps.starts) - 1 - first,
        fit_steps=first,
        tokens=job.tokens,
        precision=precision if isinstance(precision, str) else "mixed",
        bytes_per_expert=None if sizes is None else int(sizes.mean()),
        seed=seed,
        max_num_seqs=max_num_seqs,
    )


@dataclass(frozen=True)
class _Job:
    """What all rows of one call share."""

    question: Question
    link: Link
    sizes: NDArray[np.int64] | None  # [layers] bytes of an expert
    policy: str
    scope: Scope
    events: bool

    @property
    def tokens(self) -> int:
        """Tokens of the judged steps."""
        starts = self.question.steps.starts
        return int(starts[-1] - starts[self.question.learned_steps])


def _checked_scope(scope: Scope | str) -> Scope:
    scope = parse_scope(scope)
    if scope is Scope.QUOTA:
        raise InputError("prefetch is replayed on equal sizes: scope layer or global, not quota")
    return scope


def check_policy(policy: str) -> None:
    """Raise InputError where a cache under `policy` cannot be filled ahead."""
    hooks, name = load_policy(policy), POLICIES[policy]
    if name.fitted:
        raise InputError(f"policy {policy} admits nothing, so nothing can be fetched ahead into it")
    if getattr(hooks, "FORESIGHT", False):
        raise InputError(f"policy {policy} knows the future: prefetch is replayed under others")
    capped = getattr(name, "inserts", None)
    if capped or any(getattr(hooks, more, False) for more in _MORE_THAN_EVENTS):
        raise InputError(f"policy {policy} asks for more than which experts an event needs")


def _check_numbers(trace: Trace, width: int, lookahead: int, recall: float) -> None:
    if not 0 <= width <= trace.experts_per_layer:
        raise InputError(f"width {width}: 0 to {trace.experts_per_layer} experts can be named")
    if not 1 <= lookahead <= len(trace.layers):
        raise InputError(f"lookahead {lookahead}: 1 to {len(trace.layers)} layers are possible")
    if not 0 <= recall <= 1:
        raise InputError(f"recall {recall}: 0 to 1 is needed")


def _first_judged(fit: float, steps: int, names: list[str]) -> int:
    """The first step that is counted; what learns has seen one before it at least."""
    if not 0 <= fit < 1:
        raise InputError(f"fit {fit}: a share of the steps, at least 0 and below 1, is needed")
    first = int(steps * fit)
    learning = [name for name in names if PREDICTORS[name].learns]
    if learning and not first:
        raise InputError(
            f"predictor {learning[0]} learns on earlier steps, and {fit:g} of {steps} steps is "
            "none: give a larger --fit"
        )
    return first


class _Counted(NamedTuple):
    """One cache's counts and what its predictor's names were worth."""

    counts: NDArray[np.int64]  # [layers, KINDS]
    unused: NDArray[np.int64]  # [layers] prefetched, there and unused at the end
    stall: float
    named: NDArray[np.int64]  # [3] named, named rightly, needed
    misses: NDArray[np.int64] | None
    stalls: NDArray[np.float64] | None


def _made(name: str, question: Question) -> Predictor | InputError:
    """The predictor, or why there can be none."""
    try:
        return make_predictor(name, question)
    except InputError as why:
        return why


def _rows(job: _Job, name: str, predictor: Any, counts: list[int]) -> list[PrefetchReplay]:
    """One predictor at every size, in one pass over what it names."""
    from moeprof.cache.prefetch.kernels import compiled
    from moeprof.cache.prefetch.predictors.kernels import judge

    question, demand = job.question, job.question.demand
    caches = [_Cache(job, slots, 0 if name == NONE else question.width) for slots in counts]
    named = np.zeros(3, np.int64)
    first = question.learned_steps * demand.layers
    loop = compiled(load_policy(job.policy))
    for chunk in bounded_chunks(question.trace, question.steps):
        names, begin = predictor.name(chunk), chunk.first_event * demand.layers
        judge(demand.starts, demand.experts, begin, first, question.lookahead, names, named)
        for cache in caches:
            cache.take(loop, demand, names, begin, first)
    return [
        _row(job, name, slots, cache.counted(named))
        for slots, cache in zip(counts, caches, strict=True)
    ]


class _Cache:
    """One size while it is replayed."""

    def __init__(self, job: _Job, slots: int, width: int) -> None:
        from moeprof.cache.policies.setup import Setup
        from moeprof.cache.policies.shelf import new_shelf
        from moeprof.cache.prefetch.kernels import KINDS, Tally, new_transit, stacked

        question, demand = job.question, job.question.demand
        caches = 1 if job.scope is Scope.GLOBAL else demand.layers
        setup = Setup(demand.layers // caches, demand.size, slots, question.seed)
        policy = load_policy(job.policy)
        self._shelves = stacked([new_shelf(np.ones(setup.items, np.int64), slots)] * caches)
        self._states = stacked([policy.new_state(setup)] * caches)
        self._transit = new_transit(
            demand.layers, demand.size, caches, question.lookahead, width,
            job.link.transfer(job.sizes, demand.layers),
        )  # fmt: skip
        kept = demand.events if job.events else 0
        self._tally = Tally(
            np.zeros((demand.layers, KINDS), np.int64), np.zeros(1), np.zeros(kept, np.int64),
            np.zeros(kept),
        )  # fmt: skip

    def take(
        self, loop: Any, demand: Demand, named: NDArray[np.int32], begin: int, first: int
    ) -> None:
        """Replay the events that `named` is about, from event `begin` on."""
        loop(
            demand.starts, demand.experts, named, begin, first, self._shelves, self._states,
            self._transit, self._tally,
        )  # fmt: skip

    def counted(self, named: NDArray[np.int64]) -> _Counted:
        """The counts, once all was replayed."""
        tally, layers = self._tally, len(self._tally.counts)
        kept = len(tally.misses) > 0
        return _Counted(
            tally.counts,
            self._transit.fresh.sum(axis=1, dtype=np.int64),
            float(tally.stall[0]),
            named,
            tally.misses.reshape(-1, layers) if kept else None,
            tally.stalls.reshape(-1, layers) if kept else None,
        )


def _row(job: _Job, name: str, slots: int, counted: _Counted) -> PrefetchReplay:
    """One line of the table."""
    from moeprof.cache.prefetch import kernels as k

    by_layer, unused = counted.counts, counted.unused
    total = by_layer.sum(axis=0)
    accesses, misses = int(total[k.ACCESSES]), int(total[k.MISSES])
    if not accesses:
        raise InputError(f"{job.question.trace}: no layer was recorded for any token to judge")
    named, right, needed = counted.named.tolist()
    stall = counted.stall / job.tokens

    def read(layers: NDArray[np.int64]) -> float | None:
        return None if job.sizes is None else float((layers * job.sizes).sum() / job.tokens)

    demanded = by_layer[:, k.MISSES] - by_layer[:, k.LATE]
    return PrefetchReplay(
        predictor=name,
        scope=job.scope,
        contract="atomic",
        policy=job.policy,
        slots=slots,
        accesses=accesses,
        hits=accesses - misses,
        misses=misses,
        hit_ratio=(accesses - misses) / accesses,
        misses_per_token=misses / job.tokens,
        precision=right / named if named else None,
        recall=right / needed if named else None,
        prefetched=int(total[k.ISSUED]),
        useful=int(total[k.USEFUL]),
        late=int(total[k.LATE]),
        wasted=int(total[k.WASTED]),
        unused=int(unused.sum()),
        dropped=int(total[k.DROPPED]),
        polluting=int(total[k.POLLUTING]),
        stall_layers_per_token=stall,
        stall_ms_per_token=job.link.stall_ms(stall),
        demand_bytes=read(demanded),
        useful_bytes=read(by_layer[:, k.USEFUL]),
        late_bytes=read(by_layer[:, k.LATE]),
        wasted_bytes=read(by_layer[:, k.WASTED] + unused),
        polluting_bytes=read(by_layer[:, k.POLLUTING]),
        bytes_per_token=read(demanded + by_layer[:, k.ISSUED] - by_layer[:, k.DROPPED]),
        event_misses=counted.misses,
        event_stalls=counted.stalls,
    )
