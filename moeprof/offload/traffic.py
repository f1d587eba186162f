"""What an expert cache leaves to the tiers below: counts of every event, from a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.cache import Scope, replay_cache
from moeprof.cache.contracts import ATOMIC, Contract
from moeprof.cache.events import EventChunk, Steps, event_chunks, find_steps, rebatched_steps
from moeprof.cache.foresight import next_steps, of_rows
from moeprof.cache.requests import Cell
from moeprof.cache.results import CacheReplay, CacheReplays, MissStream
from moeprof.offload.second_tier import replay_second_tier
from moeprof.trace import Phase, Trace

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Traffic:
    """Experts of every event of the judged steps, [layers, steps] each."""

    needed: Counts  # distinct
    missed: Counts  # of them, not on the GPU
    stored: Counts  # of those, not in host memory either
    step_tokens: Counts  # [steps]
    load_ratio: float  # of the misses, those that were admitted to the cache
    fit_steps: int  # before the judged ones
    sequences: float  # requests of a step, mean

    @property
    def tokens(self) -> int:
        """Of all judged steps."""
        return int(self.step_tokens.sum())


@dataclass(frozen=True)
class Recording:
    """Which steps of a trace are replayed: those of `phase`, as recorded or batched anew."""

    trace: Trace
    phase: Phase = Phase.DECODE
    fit: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int = 8192

    @cached_property
    def steps(self) -> Steps:
        """As `replay_cache` finds them."""
        if self.max_num_seqs is None:
            return find_steps(self.trace, self.phase)
        return rebatched_steps(
            self.trace, self.max_num_seqs, self.max_num_batched_tokens, self.phase
        )

    @cached_property
    def requests(self) -> Counts:
        """[steps] distinct requests of every step."""
        keep, starts, order = self.steps
        request = self.trace.request.astype(np.int64)
        if order is not None or keep is not None:
            request = request[order if order is not None else keep]
        step = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        base = int(request.max(initial=0)) + 1
        pairs = np.unique(step * base + request[: len(step)])
        return np.bincount(pairs // base, minlength=len(starts) - 1)

    @property
    def first(self) -> int:
        """The first step that is judged."""
        return int((len(self.steps.starts) - 1) * (self.fit or 0.0))


def replay_traffic(
    recording: Recording,
    policies: Sequence[str],
    *,
    slots: int,
    host_slots: int | None = None,
    scope: Scope = Scope.LAYER,
    contract: str | Contract = ATOMIC,
    seed: int = 0,
) -> dict[str, Traffic]:
    """The traffic of each policy with `slots` on the GPU, in the words of `replay_cache`.

    `host_slots` experts of all layers fit in host memory, None: all. No slots: all is missed.
    """
    replays = replay_cache(
        recording.trace,
        policy=list(policies),
        slots=max(slots, 1),
        scope=scope,
        contract=contract,
        events=True,
        miss_stream=host_slots is not None and slots > 0,
        phase=recording.phase,
        fit=recording.fit,
        seed=seed,
        max_num_seqs=recording.max_num_seqs,
        max_num_batched_tokens=recording.max_num_batched_tokens,
    )
    whole = None if slots or host_slots is None else all_missed(recording)
    sequences = float(recording.requests[replays.fit_steps :].mean())
    return {
        row.policy: _traffic(row, replays, slots, whole or row.miss_stream, host_slots, sequences)
        for row in replays.rows
    }


def least_misses(recording: Recording, first: int, slots: int) -> int:
    """Misses of the steps from `first` on that no policy and no sharing of `slots` can avoid.

    Belady with bypass over one pool of all layers, which may begin with whatever is best: a step
    before the first, not counted, offers every expert.
    """
    trace = recording.trace
    experts, layers = trace.experts_per_layer, len(trace.layers)
    if slots < 1:
        return int(all_missed(recording).counts[:, first:].sum())
    chunks = [_every_expert(layers, experts, trace.top_k)]
    for chunk in event_chunks(trace, trace.layers, recording.steps):
        later = _from_step(chunk, first)
        if later is not None:
            chunks.append(later)
    cell = Cell("belady-bypass", slots, Scope.GLOBAL, ATOMIC)
    totals = _run(cell, chunks, layers, experts, slots, first=1, futures=True)[0]
    return int(totals[:, 1].sum())


def all_missed(recording: Recording) -> MissStream:
    """The stream below a cache that holds nothing."""
    trace = recording.trace
    cell = Cell("fifo", 0, Scope.GLOBAL, ATOMIC)
    chunks = list(event_chunks(trace, trace.layers, recording.steps))
    layers, experts = len(trace.layers), trace.experts_per_layer
    return _run(cell, chunks, layers, experts, 0, first=0, stream=True)[1]


def _traffic(
    row: CacheReplay,
    replays: CacheReplays,
    slots: int,
    stream: MissStream | None,
    host_slots: int | None,
    sequences: float,
) -> Traffic:
    assert row.event_accesses is not None and row.event_misses is not None
    missed = row.event_misses if slots else row.event_accesses
    stored = np.zeros_like(missed)
    if stream is not None and host_slots is not None:
        reads = replay_second_tier(stream, replays.experts, host_slots)
        stored = reads[:, replays.fit_steps :]
    ratio = row.loads / row.misses if row.misses and slots else 0.0
    return Traffic(
        needed=row.event_accesses,
        missed=missed,
        stored=stored,
        step_tokens=replays.step_tokens,
        load_ratio=ratio,
        fit_steps=replays.fit_steps,
        sequences=sequences,
    )


def _run(
    cell: Cell,
    chunks: list[EventChunk],
    layers: int,
    experts: int,
    slots: int,
    *,
    first: int,
    futures: bool = False,
    stream: bool = False,
) -> tuple[Counts, MissStream]:
    """(totals [layers, 3], misses) of one pool over `chunks`."""
    from moeprof.cache.running import Running

    most = sum(chunk.experts.shape[1] * chunk.experts.shape[2] for chunk in chunks)
    running = Running(
        cell,
        layers=layers,
        experts=experts,
        slots=slots,
        expert_bytes=None,
        first=first,
        steps=sum(len(chunk.starts) - 1 for chunk in chunks) if stream else 0,
        uses=None,
        most=most if stream else 0,
    )
    rows = [chunk.experts.shape[1] for chunk in chunks]
    ahead = next_steps(chunks, sum(rows), experts) if futures else None
    for chunk, count, begin in zip(chunks, rows, np.cumsum(rows) - rows, strict=True):
        running.take(chunk, None if ahead is None else of_rows(ahead, int(begin), count))
    tally = running.tally
    kept = [row[:count] for row, count in zip(tally.missed, tally.noted, strict=True)]
    return tally.totals, MissStream(tally.misses, kept)


def _every_expert(layers: int, experts: int, top_k: int) -> EventChunk:
    """One step that names all experts of all layers."""
    rows = -(-experts // top_k)
    ids = np.arange(rows * top_k).clip(max=experts - 1).reshape(1, rows, top_k)
    ids = np.repeat(ids, layers, axis=0).astype(np.uint16)
    return EventChunk(ids, np.ones((layers, rows), bool), np.array([0, rows]), 0)


def _from_step(chunk: EventChunk, first: int) -> EventChunk | None:
    """The steps of `chunk` from `first` on, which is numbered 1; None where there are none."""
    skipped = max(0, first - chunk.first_event)
    if skipped >= len(chunk.starts) - 1:
        return None
    start = chunk.starts[skipped]
    return EventChunk(
        chunk.experts[:, start:],
        chunk.recorded[:, start:],
        chunk.starts[skipped:] - start,
        chunk.first_event + skipped - first + 1,
    )
