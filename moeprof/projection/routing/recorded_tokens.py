"""Which recorded tokens make up a step: drawn from different requests, or following one another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace import Phase, Trace

Rows = NDArray[np.int64]


class RequestTokens(NamedTuple):
    """Tokens of one phase by request and position: request i is rows[first[i]:first[i + 1]]."""

    rows: Rows
    first: Rows
    stands_in: bool  # of the other phase, for none of this one was recorded

    @classmethod
    def of(cls, trace: Trace, phase: Phase, keep: NDArray[np.bool_] | None = None) -> RequestTokens:
        """Those of `trace` that have every layer; with `keep` [tokens], of those alone.

        Tokens whose phase is not known count as decode. Where none of `phase` was recorded, all
        stand in. Raises InputError where no token is left, TraceError on a recording of counts.
        """
        whole = np.logical_and.reduce([trace.recorded(layer) for layer in trace.layers])
        whole &= True if keep is None else keep
        mine = whole & ((trace.phase == Phase.PREFILL) == (phase is Phase.PREFILL))
        stands_in = not mine.any()
        rows = np.flatnonzero(whole if stands_in else mine)
        if not len(rows):
            raise InputError(f"{trace}: holds no token that was recorded in every layer")
        request = trace.request[rows]
        order = np.lexsort((trace.position[rows], request))
        bounds = np.flatnonzero(np.diff(request[order])) + 1
        return cls(rows[order], np.concatenate([[0], bounds, [len(rows)]]), stands_in)

    @property
    def requests(self) -> int:
        """How many have tokens."""
        return len(self.first) - 1

    def decode_step(self, tokens: int, consecutive: int, rng: np.random.Generator) -> Rows:
        """[tokens] rows: of each request drawn `consecutive` tokens from a place drawn.

        Requests come once each while there are enough of them, and anew after that.
        """
        count = -(-tokens // consecutive)
        if count <= self.requests:
            drawn = rng.permutation(self.requests)[:count]
        else:
            drawn = rng.integers(self.requests, size=count)
        lengths = np.diff(self.first)[drawn]
        begin = rng.integers(np.maximum(lengths - consecutive + 1, 1))
        place = begin[:, None] + np.arange(consecutive)
        place = np.minimum(place, lengths[:, None] - 1) + self.first[drawn][:, None]
        drawn_rows: Rows = self.rows[place.ravel()[:tokens]]
        return drawn_rows

    def prefill_step(self, tokens: int, rng: np.random.Generator) -> Rows:
        """[tokens] rows: a stretch of prompts one after the other, in an order that is drawn.

        Prompts come once each while they suffice, and all of them again after that.
        """
        order = rng.permutation(self.requests)
        lengths = np.diff(self.first)[order]
        skipped = int(rng.integers(max(min(lengths[0], len(self.rows) - tokens + 1), 1)))
        places = np.concatenate(
            [
                np.arange(*self.first[i : i + 2])
                for i in self._enough(order, lengths, tokens + skipped)
            ]
        )
        stretch = places[skipped : skipped + tokens]
        return self.rows[np.resize(stretch, tokens)]

    def _enough(self, order: Rows, lengths: Rows, tokens: int) -> Rows:
        """The first requests of `order` that hold `tokens` together, or all."""
        return order[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
