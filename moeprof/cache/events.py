"""The unit of replay: one step of one layer with the experts its whole batch needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Phase, Trace


class EventChunk(NamedTuple):
    """Consecutive whole steps. Event i of a layer is rows starts[i] to starts[i + 1]."""

    experts: NDArray[np.unsignedinteger]  # [layers, rows, k]
    recorded: NDArray[np.bool_]  # [layers, rows]
    starts: NDArray[np.int64]  # [events + 1]
    first_event: int


def event_chunks(
    trace: Trace, layers: Sequence[int], phase: Phase | None = None
) -> Iterator[EventChunk]:
    """The steps of `trace` in engine order, a bounded number of rows at a time.

    With `phase`, only that phase's tokens count, each step holding those it has. A step that
    straddles two stored batches is held back until it is whole.
    """
    event = 0
    rest: tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]] | None = None
    rest_step = np.zeros(0, np.int64)
    for parts in zip(*(trace.batches(layer) for layer in layers), strict=True):
        rows = slice(parts[0].start, parts[0].start + len(parts[0].experts))
        experts = np.stack([part.experts for part in parts])
        recorded = np.stack([_mask(part.recorded, rows.stop - rows.start) for part in parts])
        step = trace.step[rows]
        if phase is not None:
            keep = trace.phase[rows] == phase
            experts, recorded, step = experts[:, keep], recorded[:, keep], step[keep]
        if rest is not None:
            experts = np.concatenate([rest[0], experts], axis=1)
            recorded = np.concatenate([rest[1], recorded], axis=1)
            step = np.concatenate([rest_step, step])
        bounds = np.flatnonzero(np.diff(step)) + 1
        cut = int(bounds[-1]) if len(bounds) else 0
        if cut:
            starts = np.concatenate([[0], bounds])
            yield EventChunk(experts[:, :cut], recorded[:, :cut], starts, event)
            event += len(bounds)
        rest, rest_step = (experts[:, cut:], recorded[:, cut:]), step[cut:]
    if rest is not None and len(rest_step):
        yield EventChunk(*rest, np.array([0, len(rest_step)]), event)


def _mask(recorded: NDArray[np.bool_] | None, rows: int) -> NDArray[np.bool_]:
    return np.ones(rows, bool) if recorded is None else recorded
