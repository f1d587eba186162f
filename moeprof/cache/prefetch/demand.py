"""What every event of a trace needs, in one place: predictors read it, and so does the loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.cache.events import EventChunk, Steps, event_chunks
from moeprof.trace import Trace

_STEPS_AT_A_TIME = 4096  # what is named for them is held in memory


class Demand(NamedTuple):
    """The distinct experts of every event, in order of first use.

    Event e is layer e % layers of step e // layers; its experts are at starts[e] to starts[e + 1].
    """

    starts: NDArray[np.int64]  # [events + 1]
    experts: NDArray[np.uint16]
    tokens: NDArray[np.int32]  # tokens of the event that chose the expert
    layers: int
    size: int  # experts of a layer

    @property
    def events(self) -> int:
        """Steps times layers."""
        return len(self.starts) - 1


def gather_demand(trace: Trace, steps: Steps) -> Demand:
    """The demand of `trace` in `steps`, all of it in memory: six bytes an access.

    Raises TraceError where an id names no expert.
    """
    from moeprof.cache.prefetch.kernels import distinct

    layers, size = len(trace.layers), trace.experts_per_layer
    starts, parts = [np.zeros(1, np.int64)], []
    stamp = np.full((layers, size), -1, np.int64)
    place = np.zeros((layers, size), np.int64)
    foreign = np.zeros(layers, np.int64)
    for chunk in event_chunks(trace, trace.layers, steps):
        bounds, experts, tokens = distinct(
            chunk.experts, chunk.recorded, chunk.starts, chunk.first_event, stamp, place, foreign
        )
        starts.append(starts[-1][-1] + bounds[1:])
        parts.append((experts, tokens))
    for layer, count in zip(trace.layers, foreign.tolist(), strict=True):
        refuse_foreign_ids(trace, layer, count)
    experts = np.concatenate([part[0] for part in parts])
    tokens = np.concatenate([part[1] for part in parts])
    return Demand(np.concatenate(starts), experts, tokens, layers, size)


def bounded_chunks(trace: Trace, steps: Steps) -> Iterator[EventChunk]:
    """The chunks of `event_chunks`, cut so that none has too many steps."""
    for chunk in event_chunks(trace, trace.layers, steps):
        for begin in range(0, len(chunk.starts) - 1, _STEPS_AT_A_TIME):
            starts = chunk.starts[begin : begin + _STEPS_AT_A_TIME + 1]
            rows = slice(starts[0], starts[-1])
            yield EventChunk(
                chunk.experts[:, rows],
                chunk.recorded[:, rows],
                starts - starts[0],
                chunk.first_event + begin,
            )


def replayed_rows(trace: Trace, steps: Steps) -> NDArray[np.int64]:
    """[rows] the trace's row of every replayed one, in order."""
    if steps.order is not None:
        return steps.order[: steps.starts[-1]]
    if steps.keep is not None:
        return np.flatnonzero(steps.keep)
    return np.arange(trace.tokens)
