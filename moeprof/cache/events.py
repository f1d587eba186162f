"""The unit of replay: one step of one layer with the experts its whole batch needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Phase, Trace
from moeprof.trace.batching import rebatch
from moeprof.trace.reader import LayerBatch

_CHUNK_ROWS = 32_768  # of all layers of a chunk together, unless one step has more


class Steps(NamedTuple):
    """Which tokens are replayed and where their steps begin: the same for every layer."""

    keep: NDArray[np.bool_] | None  # [tokens]; None: all
    starts: NDArray[np.signedinteger]  # [steps + 1] step i is kept tokens starts[i] to [i + 1]
    order: NDArray[np.int64] | None = None  # [kept tokens] rows in another order; None: as recorded


class EventChunk(NamedTuple):
    """Consecutive whole steps. Event i of a layer is rows starts[i] to starts[i + 1]."""

    experts: NDArray[np.unsignedinteger]  # [layers, rows, k]
    recorded: NDArray[np.bool_]  # [layers, rows]
    starts: NDArray[np.int64]  # [events + 1]
    first_event: int


def rebatched_steps(
    trace: Trace, max_num_seqs: int, max_num_batched_tokens: int, phase: Phase | None = None
) -> Steps:
    """The steps of `trace.batching.rebatch`; with `phase`, of that phase's tokens alone."""
    batching = rebatch(trace, max_num_seqs, max_num_batched_tokens)
    if phase is None:
        return Steps(None, batching.starts, batching.order)
    kept = trace.phase[batching.order] == phase
    held = np.concatenate([[0], np.cumsum(kept)])[batching.starts]
    return Steps(None, np.unique(held), batching.order[kept])


def find_steps(trace: Trace, phase: Phase | None = None) -> Steps:
    """The steps of `trace` in engine order; with `phase`, of that phase's tokens, one at least."""
    keep = None if phase is None else trace.phase == phase
    step = trace.step if keep is None else trace.step[keep]
    begins = np.ones(len(step) + 1, bool)  # and one past the end
    np.not_equal(step[1:], step[:-1], out=begins[1:-1])
    return Steps(keep, _places(begins))


def _places(mask: NDArray[np.bool_]) -> NDArray[np.signedinteger]:
    """`np.flatnonzero` in as few bytes as do, a piece at a time: where every token is a step, the
    starts are as large as a layer's ids.
    """
    dtype: type[np.signedinteger] = np.int32 if len(mask) < 1 << 31 else np.int64
    found: NDArray[np.signedinteger] = np.empty(np.count_nonzero(mask), dtype)
    done = 0
    for begin in range(0, len(mask), _CHUNK_ROWS):
        piece = np.flatnonzero(mask[begin : begin + _CHUNK_ROWS])
        found[done : done + len(piece)] = piece + begin
        done += len(piece)
    return found


def event_chunks(trace: Trace, layers: Sequence[int], steps: Steps) -> Iterator[EventChunk]:
    """The events of `layers` in engine order, a bounded number of rows at a time.

    A step that straddles two stored batches is held back until it is whole; rows after the last
    step are not read.
    """
    if steps.order is not None:
        yield from _reordered(trace, layers, steps, steps.order)
        return
    event = start = 0  # of the first row in hand
    experts = recorded = None
    for parts in _pieces(trace, layers):
        more, also = _stacked(parts, steps.keep)
        experts = more if experts is None else np.concatenate([experts, more], axis=1)
        recorded = also if recorded is None else np.concatenate([recorded, also], axis=1)
        stop = _last_before(steps.starts, start + experts.shape[1])
        starts = steps.starts[event : stop + 1].astype(np.int64) - start
        cut = int(starts[-1])
        if cut:
            yield _contiguous(experts[:, :cut], recorded[:, :cut], starts, event)
        experts, recorded = experts[:, cut:], recorded[:, cut:]
        event, start = stop, start + cut
        if stop == len(steps.starts) - 1:
            return


def _contiguous(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    first_event: int,
) -> EventChunk:
    """A chunk side by side in memory: Numba compiles its loops anew for every layout it meets."""
    whole = np.ascontiguousarray
    return EventChunk(whole(experts), whole(recorded), starts, first_event)


def _pieces(trace: Trace, layers: Sequence[int]) -> Iterator[list[LayerBatch]]:
    """The same rows of every layer, few enough for a chunk."""
    most = max(_CHUNK_ROWS // len(layers), 1024)
    for parts in zip(*(trace.batches(layer) for layer in layers), strict=True):
        for begin in range(0, len(parts[0].experts), most):
            rows = slice(begin, begin + most)
            yield [
                LayerBatch(
                    part.start + begin,
                    part.experts[rows],
                    None if part.recorded is None else part.recorded[rows],
                )
                for part in parts
            ]


def _last_before(starts: NDArray[np.signedinteger], row: int) -> int:
    """The last step that begins at `row` or before. Of the same type, or NumPy copies `starts`."""
    return int(np.searchsorted(starts, starts.dtype.type(row), side="right")) - 1


def step_kinds(trace: Trace, steps: Steps) -> NDArray[np.uint8]:
    """[steps] bits: 1 where a step holds prompt tokens, 2 where none of its requests was in the
    step before.
    """
    rows = _kept_rows(trace, steps)
    count = len(steps.starts) - 1
    step = np.repeat(np.arange(count), np.diff(steps.starts))
    prompts = np.bincount(step[trace.phase[rows] == Phase.PREFILL], minlength=count) > 0
    request = trace.request[rows].astype(np.int64)
    width = int(request.max()) + 2
    runs = np.unique(step * width + request + 1)
    stays = np.isin(runs - width, runs, assume_unique=True)
    goes_on = np.bincount(runs[stays] // width, minlength=count) > 0
    return (prompts + 2 * ~goes_on).astype(np.uint8)


def _kept_rows(trace: Trace, steps: Steps) -> NDArray[np.int64]:
    """[kept tokens] the rows of the trace that the steps are made of, in their order."""
    if steps.order is not None:
        return steps.order
    return np.arange(trace.tokens) if steps.keep is None else np.flatnonzero(steps.keep)


def gate_chunks(trace: Trace, layers: Sequence[int], steps: Steps) -> Iterator[NDArray[np.float32]]:
    """[layers, rows, k] gate weights that belong to each chunk of `event_chunks`, 0 where not
    recorded. The weights of `layers` are all held in memory.
    """
    rows = _kept_rows(trace, steps)
    weights = [trace.weights(layer) for layer in layers]
    recorded = [trace.recorded(layer) for layer in layers]
    place = [np.cumsum(mask) - 1 for mask in recorded]  # `weights` has recorded rows alone
    for chunk in event_chunks(trace, layers, steps):
        begin = steps.starts[chunk.first_event]
        held = rows[begin : begin + chunk.experts.shape[1]]
        gates = np.zeros(chunk.experts.shape, np.float32)
        for layer, (values, mask, at) in enumerate(zip(weights, recorded, place, strict=True)):
            there = mask[held]
            gates[layer, there] = values[at[held[there]]]
        yield gates


def _stacked(
    parts: Sequence[LayerBatch], keep: NDArray[np.bool_] | None
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]]:
    """One batch of several layers: experts [layers, rows, k] and recorded [layers, rows]."""
    rows = len(parts[0].experts)
    experts = np.stack([part.experts for part in parts])
    recorded = np.stack([_mask(part.recorded, rows) for part in parts])
    if keep is None:
        return experts, recorded
    kept = keep[parts[0].start : parts[0].start + rows]
    return experts[:, kept], recorded[:, kept]


def _mask(recorded: NDArray[np.bool_] | None, rows: int) -> NDArray[np.bool_]:
    return np.ones(rows, bool) if recorded is None else recorded


def _reordered(
    trace: Trace, layers: Sequence[int], steps: Steps, order: NDArray[np.int64]
) -> Iterator[EventChunk]:
    """Chunks of steps in another order: the ids of `layers` are all held in memory."""
    experts = [trace.experts(layer) for layer in layers]
    recorded = [trace.recorded(layer) for layer in layers]
    place = [np.cumsum(mask) - 1 for mask in recorded]  # `experts` has recorded rows alone
    step = 0
    while step < len(steps.starts) - 1:
        begin = steps.starts[step]
        stop = max(_last_before(steps.starts, int(begin) + _CHUNK_ROWS), step + 1)
        rows = order[begin : steps.starts[stop]]
        yield EventChunk(
            np.stack([ids[at[rows].clip(0)] for ids, at in zip(experts, place, strict=True)]),
            np.stack([mask[rows] for mask in recorded]),
            steps.starts[step : stop + 1].astype(np.int64) - begin,
            step,
        )
        step = stop
