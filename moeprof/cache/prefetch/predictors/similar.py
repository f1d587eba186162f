"""Requests like this one: the earlier request whose use of experts so far looks most alike."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk
from moeprof.cache.prefetch.demand import bounded_chunks, replayed_rows
from moeprof.cache.prefetch.predictors.names import Question
from moeprof.cache.prefetch.predictors.past import nobody
from moeprof.errors import InputError

MOST_MATRICES = 128


class Alike(NamedTuple):
    """How alike the running requests and the learned ones are. A place is a running request's."""

    matrix: NDArray[np.int64]  # [places, layers, experts] tokens so far
    dot: NDArray[np.float64]  # [places, layers, learned] of counts and the learned unit rows
    cosine: NDArray[np.float64]  # [places, layers, learned]
    total: NDArray[np.float64]  # [places, learned] sum of cosines over layers


class ActivationMatrix:
    """Keeps the matrices [layers, experts] of requests that ended in the learning window, 128 of
    them at most, and names the highest counts of the one most alike.

    Alike is the mean over layers of the cosine between rows, all of the request's tokens so far
    being counted. Every running request names, and shares of a row are added.
    """

    def __init__(self, question: Question) -> None:
        self._question = question
        trace, steps, demand = question[:3]
        rows = replayed_rows(trace, steps)
        request = trace.request[rows].astype(np.int64)
        if (request < 0).any():
            raise InputError(f"{trace}: activation-matrix needs rows that say their request")
        number, first, self._index = np.unique(request, return_index=True, return_inverse=True)
        last = np.zeros(len(number), np.int64)
        last[self._index] = np.arange(len(rows))
        ended = np.flatnonzero(last < steps.starts[question.learned_steps])
        if not len(ended):
            raise InputError(
                f"{trace}: activation-matrix learns on requests that end in the first part of the "
                "steps, and none does: give a larger --fit"
            )
        kept = ended[np.argsort(last[ended], kind="stable")]
        kept = kept[np.linspace(0, len(kept) - 1, min(len(kept), MOST_MATRICES)).astype(int)]
        self._learned = self._count(kept, len(number))
        norm = np.sqrt((self._learned**2.0).sum(axis=2, keepdims=True))
        unit = self._learned / np.maximum(norm, 1)
        self._unit = np.ascontiguousarray(unit.transpose(1, 2, 0))
        self._share = self._learned / np.maximum(self._learned.sum(axis=2, keepdims=True), 1)
        self._begins = np.zeros(len(rows), np.bool_)
        self._begins[first] = True
        self._place = _places(first, last)
        shape = (int(self._place.max()) + 1, demand.layers)
        self._alike = Alike(
            np.zeros((*shape, demand.size), np.int64),
            np.zeros((*shape, len(kept))),
            np.zeros((*shape, len(kept))),
            np.zeros((shape[0], len(kept))),
        )

    def _count(self, kept: NDArray[np.int64], requests: int) -> NDArray[np.int64]:
        """[kept, layers, experts] tokens of each of the `kept` requests."""
        from moeprof.cache.prefetch.predictors.kernels import count_by_request

        trace, steps, demand, until = self._question[:4]
        place = np.full(requests, -1, np.int64)
        place[kept] = np.arange(len(kept))
        counts = np.zeros((len(kept), demand.layers, demand.size), np.int64)
        for chunk in bounded_chunks(trace, steps._replace(starts=steps.starts[: until + 1])):
            begin = steps.starts[chunk.first_event]
            of_row = place[self._index[begin : begin + chunk.starts[-1]]]
            count_by_request(chunk.experts, chunk.recorded, of_row, counts)
        return counts

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """See `Predictor`."""
        from moeprof.cache.prefetch.predictors.kernels import name_by_likeness

        begin = self._question.steps.starts[chunk.first_event]
        rows = slice(begin, begin + chunk.starts[-1])
        named = nobody(chunk, self._question.width)
        name_by_likeness(
            chunk.experts, chunk.recorded, chunk.starts, self._place[self._index[rows]],
            self._begins[rows], self._question.lookahead, self._unit, self._share, self._alike,
            named,
        )  # fmt: skip
        return named


def _places(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """[requests] a place for each, so that those that overlap in rows have different ones."""
    place = np.zeros(len(first), np.int64)
    running: list[tuple[int, int]] = []  # last row and place
    free: list[int] = []
    places = 0
    for request in np.argsort(first, kind="stable").tolist():
        while running and running[0][0] < first[request]:
            heappush(free, heappop(running)[1])
        if free:
            place[request] = heappop(free)
        else:
            place[request] = places
            places += 1
        heappush(running, (int(last[request]), int(place[request])))
    return place
