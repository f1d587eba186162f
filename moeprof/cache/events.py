"""The unit of replay: one step of one layer with the experts its whole batch needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Phase, Trace
from moeprof.trace.reader import LayerBatch


class Steps(NamedTuple):
    """Which tokens are replayed and where their steps begin: the same for every layer."""

    keep: NDArray[np.bool_] | None  # [tokens]; None: all
    starts: NDArray[np.int64]  # [steps + 1] step i is kept tokens starts[i] to starts[i + 1]


class EventChunk(NamedTuple):
    """Consecutive whole steps. Event i of a layer is rows starts[i] to starts[i + 1]."""

    experts: NDArray[np.unsignedinteger]  # [layers, rows, k]
    recorded: NDArray[np.bool_]  # [layers, rows]
    starts: NDArray[np.int64]  # [events + 1]
    first_event: int


def find_steps(trace: Trace, phase: Phase | None = None) -> Steps:
    """The steps of `trace` in engine order; with `phase`, of that phase's tokens, one at least."""
    keep = None if phase is None else trace.phase == phase
    step = trace.step if keep is None else trace.step[keep]
    bounds = np.flatnonzero(np.diff(step)) + 1
    return Steps(keep, np.concatenate([[0], bounds, [len(step)]]))


def event_chunks(trace: Trace, layers: Sequence[int], steps: Steps) -> Iterator[EventChunk]:
    """The events of `layers` in engine order, a bounded number of rows at a time.

    A step that straddles two stored batches is held back until it is whole; rows after the last
    step are not read.
    """
    event = start = 0  # of the first row in hand
    experts = recorded = None
    for parts in zip(*(trace.batches(layer) for layer in layers), strict=True):
        more, also = _stacked(parts, steps.keep)
        experts = more if experts is None else np.concatenate([experts, more], axis=1)
        recorded = also if recorded is None else np.concatenate([recorded, also], axis=1)
        stop = int(np.searchsorted(steps.starts, start + experts.shape[1], side="right")) - 1
        starts = steps.starts[event : stop + 1] - start
        cut = int(starts[-1])
        if cut:
            yield EventChunk(experts[:, :cut], recorded[:, :cut], starts, event)
        experts, recorded = experts[:, cut:], recorded[:, cut:]
        event, start = stop, start + cut
        if stop == len(steps.starts) - 1:
            return


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
