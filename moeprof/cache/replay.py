"""Replay of a trace through expert caches: any policy, under a named contract, at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.cache.contracts import Contract, find_contract, refuse_mixed
from moeprof.cache.events import (
    EventChunk,
    Steps,
    event_chunks,
    find_steps,
    gate_chunks,
    rebatched_steps,
    step_kinds,
)
from moeprof.cache.foresight import next_steps, of_rows
from moeprof.cache.policies import load_policy
from moeprof.cache.quotas import Quotas, byte_quotas_for, quotas_for
from moeprof.cache.requests import (
    Cell,
    Scope,
    expert_sizes,
    judged_from,
    known_bytes,
    parse_scope,
    refuse_foreign_rules,
    refuse_missing_gates,
    slot_counts,
)
from moeprof.cache.results import CacheReplay, CacheReplays, MissStream
from moeprof.errors import InputError
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace


def replay_cache(
    trace: Trace,
    *,
    policy: str | Sequence[str] | None = None,
    slots: int | Sequence[int] = (),
    fraction: float | Sequence[float] = (),
    budget_bytes: int | None = None,
    scope: Scope | str | None = None,
    contract: str | Contract | Sequence[str | Contract] = "atomic",
    across_contracts: bool = False,
    max_inserts: int | None = None,
    phase: Phase | None = None,
    precision: str | Mapping[Any, str] = "bf16",
    expert_bytes: Mapping[int, int] | None = None,
    fit: float | None = None,
    seed: int = 0,
    events: bool = False,
    miss_stream: bool = False,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = 8192,
) -> CacheReplays:
    """Replay `trace` through every policy at every size, and count.

    `policy` and `scope` are the contract's own where not given, else lru per layer. `slots` are
    per layer, in all for scope global, on average for scope quota; `fraction` is the same as a
    share of all experts; `budget_bytes` counts capacity in bytes instead, for all layers together.
    At most `max_inserts` misses of an event come into the cache. A miss reads what `precision`
    makes of an expert, or `expert_bytes` by layer index, or what the recording says where the
    model's tensors are not known. What is fitted (static lists, quotas) learns on the first `fit`
    of the steps, a half if None, and then all rows count the later steps alone; caches are warm by
    then. `events` keeps the accesses and misses of every event, `miss_stream` also which experts
    missed, for a second tier under contracts that look up a whole event. With `max_num_seqs`, that
    many of the trace's requests run at a time (`moeprof.trace.rebatch`) in place of its own steps.

    Raises InputError for what cannot be replayed, TraceError where the recording is damaged.
    """
    if not trace.tokens or not trace.layers:
        raise InputError(f"{trace}: holds no tokens to replay")
    named = [contract] if isinstance(contract, str | Contract) else list(contract)
    contracts = [find_contract(rules) for rules in named]
    scope = parse_scope(scope or contracts[0].scope or Scope.LAYER)
    sizes = expert_sizes(trace, precision, expert_bytes)
    if known_bytes(trace, expert_bytes) is not None:
        precision = "stated"
    counts = _slot_counts(trace, slots, fraction, budget_bytes, scope, sizes)
    cells = _cells(contracts, policy, counts, scope)
    cells = [
        replace(cell, seed=seed, budget_bytes=budget_bytes, max_inserts=max_inserts)
        for cell in cells
    ]
    for cell in cells:
        refuse_foreign_rules(cell, trace.top_k)
        refuse_missing_gates(cell, trace)
    refuse_mixed((cell.contract.name for cell in cells), across_contracts)
    if max_num_seqs is None:
        steps = find_steps(trace, phase)
    else:
        steps = rebatched_steps(trace, max_num_seqs, max_num_batched_tokens, phase)
    if len(steps.starts) < 2 or not steps.starts[-1]:
        raise InputError(f"{trace}: holds no {Phase(phase or 0).name.lower()} tokens")
    total = len(steps.starts) - 1
    first = judged_from(cells, scope, fit, total)
    for rules in contracts if miss_stream else ():
        if rules.sequential or rules.serving not in ("at_once", "evict_after"):
            raise InputError(
                f"contract {rules.name} looks up no whole event at a time: it has no miss stream"
            )
    job = _Job(trace, steps, first, sizes, events or miss_stream, miss_stream)
    return _results(job, cells, _replay_all(job, cells), phase, precision, max_num_seqs)


class _Job(NamedTuple):
    """What all replays of one call share."""

    trace: Trace
    steps: Steps
    first: int  # judged step
    sizes: NDArray[np.int64] | None  # [layers] bytes of an expert
    events: bool
    stream: bool


@dataclass
class _Counted:
    """One cell's counts, layers stacked as they are done."""

    totals: NDArray[np.int64]  # [layers, 3]
    accesses: NDArray[np.int64] | None  # [layers, steps]
    misses: NDArray[np.int64] | None
    stream: MissStream | None = None
    quotas: Quotas | None = None
    equal: NDArray[np.int64] | None = None  # totals with equal slots, scope quota


def _cells(
    contracts: Sequence[Contract],
    policy: str | Sequence[str] | None,
    counts: Sequence[int],
    scope: Scope,
) -> list[Cell]:
    """Every policy at every size under every contract."""
    given = [policy] if isinstance(policy, str) else policy
    return [
        Cell(name, count, scope, rules)
        for rules in contracts
        for count in counts
        for name in (given or [rules.default_policy])
    ]


def _slot_counts(
    trace: Trace,
    slots: int | Sequence[int],
    fraction: float | Sequence[float],
    budget_bytes: int | None,
    scope: Scope,
    expert_bytes: NDArray[np.int64] | None,
) -> list[int]:
    """The sizes asked for, in slots."""
    sizes = [slots] if isinstance(slots, int) else list(slots)
    shares = [fraction] if isinstance(fraction, float | int) else list(fraction)
    if budget_bytes is not None:
        if sizes or shares:
            raise InputError("give slots, a fraction or a budget in bytes, not two of them")
        sizes = [_slots_of(trace, budget_bytes, scope, expert_bytes)]
    return slot_counts(trace, scope, sizes, shares)


def _slots_of(
    trace: Trace, budget_bytes: int, scope: Scope, sizes: NDArray[np.int64] | None
) -> int:
    """Experts of the mean size that `budget_bytes` hold, per layer unless the scope is global."""
    if sizes is None:
        raise InputError(f"{trace}: the model's tensors are not known, so no budget in bytes")
    share = 1 if scope is Scope.GLOBAL else len(trace.layers)
    most = trace.experts_per_layer * len(trace.layers) // share
    slots = int(budget_bytes // share // sizes.mean())
    if slots < 1:
        raise InputError(
            f"budget of {budget_bytes} bytes: one expert takes {int(sizes.mean())}"
            + ("" if share == 1 else f", and {share} layers have a cache each")
        )
    return min(slots, most)


def _replay_all(job: _Job, cells: list[Cell]) -> list[_Counted]:
    """A thread a layer where layers have their own cache, a thread a cell where they share one."""
    scope, layers = cells[0].scope, list(range(len(job.trace.layers)))
    equal = [replace(cell, scope=Scope.LAYER) for cell in cells if scope is Scope.QUOTA]
    if scope is Scope.GLOBAL:
        tasks = [(layers, [cell]) for cell in cells]
    else:
        tasks = [([layer], [*cells, *equal]) for layer in layers]
    quotas = _quotas(job, cells) if scope is Scope.QUOTA else {}
    kinds = _kinds(job, cells)

    def run(task: tuple[list[int], list[Cell]]) -> list[_Counted]:
        return _replay_group(job, *task, quotas, kinds)

    done = map_threads(run, tasks)
    if scope is Scope.GLOBAL:
        return [counted for (counted,) in done]
    stacked = [_stacked(parts) for parts in zip(*done, strict=True)]
    for cell, counted, twin in zip(cells, stacked, stacked[len(cells) :], strict=False):
        counted.quotas, counted.equal = quotas[cell.slots], twin.totals
    return stacked[: len(cells)]


def _stacked(parts: Sequence[_Counted]) -> _Counted:
    """The layers of one cell together."""
    accesses = [part.accesses for part in parts if part.accesses is not None]
    misses = [part.misses for part in parts if part.misses is not None]
    return _Counted(
        np.concatenate([part.totals for part in parts]),
        np.concatenate(accesses) if accesses else None,
        np.concatenate(misses) if misses else None,
        _joined([part.stream for part in parts if part.stream is not None]),
    )


def _joined(streams: list[MissStream]) -> MissStream | None:
    if not streams:
        return None
    experts = [layer for stream in streams for layer in stream.experts]
    return MissStream(np.concatenate([stream.counts for stream in streams]), experts)


def _quotas(job: _Job, cells: list[Cell]) -> dict[int, Quotas]:
    """Slots of each layer by mean slots, fitted on the steps before the judged ones."""
    budget = cells[0].budget_bytes
    sizes = sorted({cell.slots for cell in cells})
    if budget is None or job.sizes is None:
        return quotas_for(job.trace, job.steps, job.first, sizes)
    return {sizes[0]: byte_quotas_for(job.trace, job.steps, job.first, job.sizes, budget)}


def _kinds(job: _Job, cells: list[Cell]) -> NDArray[np.uint8]:
    """[steps] what the policies are told of a step, where one asks."""
    if any(_has(cell, "prefill") or _has(cell, "renew") for cell in cells):
        return step_kinds(job.trace, job.steps)
    return np.zeros(len(job.steps.starts) - 1, np.uint8)


def _has(cell: Cell, name: str) -> bool:
    return bool(getattr(load_policy(cell.rules), name, False))


def _replay_group(
    job: _Job,
    group: list[int],
    cells: list[Cell],
    quotas: Mapping[int, Quotas],
    kinds: NDArray[np.uint8],
) -> list[_Counted]:
    """All `cells` over the layers of `group`, which share a cache, in one pass over their ids."""
    from moeprof.cache.running import Running

    names = [job.trace.layers[ordinal] for ordinal in group]
    foreseen = [cell for cell in cells if _has(cell, "FORESIGHT")]
    chunks = partial(event_chunks, job.trace, names, job.steps)
    learned = _uses(job, len(group), chunks, cells)
    caches = [
        Running(
            cell,
            layers=len(group),
            experts=job.trace.experts_per_layer,
            slots=_slots(cell, group, quotas),
            capacity_bytes=_capacity(job, cell, group, quotas),
            expert_bytes=None if job.sizes is None else job.sizes[group],
            first=job.first,
            steps=len(job.steps.starts) - 1 if job.events else 0,
            kinds=kinds,
            uses=learned.get(cell.fitted),
            most=int(job.steps.starts[-1]) * job.trace.top_k if job.stream else 0,
        )
        for cell in cells
    ]
    rows = int(job.steps.starts[-1])
    ahead = next_steps(chunks(), rows, job.trace.experts_per_layer) if foreseen else None
    gates: Iterator[NDArray[np.float32]] | None = None
    if any(_has(cell, "READS_GATES") for cell in cells):
        gates = gate_chunks(job.trace, names, job.steps)
    for chunk in chunks():
        begin = int(job.steps.starts[chunk.first_event])
        future = None if ahead is None else of_rows(ahead, begin, chunk.experts.shape[1])
        weights = None if gates is None else next(gates)
        for cache in caches:
            cache.take(chunk, future, weights)
    return [_finished(job, cache, names) for cache in caches]


def _slots(cell: Cell, group: list[int], quotas: Mapping[int, Quotas]) -> int:
    """Slots of one cache."""
    return quotas[cell.slots].slots[group[0]] if cell.scope is Scope.QUOTA else cell.slots


def _capacity(job: _Job, cell: Cell, group: list[int], quotas: Mapping[int, Quotas]) -> int | None:
    """Bytes of one cache, where capacity counts in bytes."""
    if cell.budget_bytes is None or job.sizes is None:
        return None
    if cell.scope is Scope.QUOTA:
        return int(quotas[cell.slots].slots[group[0]] * job.sizes[group[0]])
    return cell.budget_bytes * len(group) // len(job.trace.layers)


def _uses(
    job: _Job, layers: int, chunks: Callable[[], Iterator[EventChunk]], cells: list[Cell]
) -> dict[str, NDArray[np.int64]]:
    """[layers, experts] uses in the window that each kind of fitted policy learns on."""
    from moeprof.cache.kernels import count_uses

    total = len(job.steps.starts) - 1
    windows = {
        "fit": (0, job.first),
        "fit-tokens": (0, job.first),
        "judged": (job.first, total),
    }
    kinds = {cell.fitted for cell in cells} & set(windows)
    shape = (layers, job.trace.experts_per_layer)
    uses = {kind: np.zeros(shape, np.int64) for kind in kinds}
    for kind, counted in uses.items():
        last = np.full(shape, -1, np.int64)
        for chunk in chunks():
            for layer in range(layers):
                count_uses(
                    chunk.experts[layer], chunk.recorded[layer], chunk.starts, chunk.first_event,
                    windows[kind], kind == "fit-tokens", last[layer], counted[layer],
                )  # fmt: skip
    return uses


def _finished(job: _Job, cache: Any, names: list[int]) -> _Counted:
    """The counts of one cache, once every id was seen to name an expert."""
    tally = cache.tally
    for layer, foreign in zip(names, tally.foreign.tolist(), strict=True):
        refuse_foreign_ids(job.trace, layer, foreign)
    if not job.events:
        return _Counted(tally.totals, None, None)
    counted = _Counted(tally.totals, tally.accesses[:, job.first :], tally.misses[:, job.first :])
    if job.stream:
        kept = [row[:n].copy() for row, n in zip(tally.missed, tally.noted, strict=True)]
        counted.stream = MissStream(tally.misses, kept)
    return counted


def _results(
    job: _Job,
    cells: list[Cell],
    counted: list[_Counted],
    phase: Phase | None,
    precision: str | Mapping[Any, str],
    max_num_seqs: int | None,
) -> CacheReplays:
    """Rows with what the counts come to per token."""
    trace = job.trace
    tokens = np.diff(job.steps.starts)[job.first :]
    total = int(tokens.sum())
    rows = [_row(job, cell, count, total) for cell, count in zip(cells, counted, strict=True)]
    for row in rows:
        if not row.accesses:
            raise InputError(
                f"{trace}: no layer was recorded for any token to replay"
                if cells[0].contract.serving == "at_once" and not cells[0].contract.source
                else f"{trace}: contract {row.contract} looks up none of these steps"
            )
    return CacheReplays(
        rows=rows,
        contracts=list({cell.contract.name: cell.contract for cell in cells}.values()),
        phase="all" if phase is None else phase.name.lower(),
        layers=len(trace.layers),
        experts=trace.experts_per_layer,
        steps=len(tokens),
        fit_steps=job.first,
        tokens=total,
        experts_per_event=rows[0].accesses / (len(tokens) * len(trace.layers)),
        precision=precision if isinstance(precision, str) else "mixed",
        bytes_per_expert=None if job.sizes is None else int(job.sizes.mean()),
        token_cycle=len(trace.layers) * trace.top_k,
        hitless_slots=(len(trace.layers) - 1) * trace.top_k,
        seed=cells[0].seed,
        step_tokens=tokens,
        max_num_seqs=max_num_seqs,
    )


def _hit_ratio(totals: NDArray[np.int64]) -> float:
    accesses, misses, _ = totals.sum(axis=0).tolist()
    return float((accesses - misses) / max(accesses, 1))


def _row(job: _Job, cell: Cell, counted: _Counted, tokens: int) -> CacheReplay:
    """One line of the table."""
    accesses, misses, loads = counted.totals.sum(axis=0).tolist()
    by_layer = counted.totals[:, 1]
    read = None if job.sizes is None else float((by_layer * job.sizes).sum() / tokens)
    return CacheReplay(
        policy=cell.policy,
        scope=cell.scope,
        contract=cell.contract.name,
        slots=cell.slots,
        accesses=accesses,
        hits=accesses - misses,
        misses=misses,
        hit_ratio=(accesses - misses) / max(accesses, 1),
        loads=loads,
        misses_per_token=misses / tokens,
        bytes_per_token=read,
        budget_bytes=cell.budget_bytes,
        quotas=None if counted.quotas is None else counted.quotas.slots,
        quotas_short_by=None if counted.quotas is None else counted.quotas.short_by,
        equal_hit_ratio=None if counted.equal is None else _hit_ratio(counted.equal),
        accesses_by_layer=counted.totals[:, 0],
        misses_by_layer=by_layer,
        event_accesses=counted.accesses,
        event_misses=counted.misses,
        miss_stream=counted.stream,
    )
