"""Recording a random part of the requests: each is kept or left out whole, whatever it holds.

Whether a request is kept depends on its number and the seed alone, so the choice is unbiased and
the same for the same seed, however requests were batched.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import TokenRows

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class RequestSampler:
    """Keeps each request with probability `rate`, independently of all others."""

    rate: float
    seed: int

    def keeps(self, requests: NDArray[np.integer]) -> NDArray[np.bool_]:
        """[n] whether each of these request numbers is kept."""
        stream = _mix(np.array([self.seed % (1 << 64)], np.uint64))
        uniform = _mix(stream + (requests.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return np.asarray((uniform >> np.uint64(11)) * 2.0**-53 < self.rate)

    def sample(self, rows: TokenRows) -> TokenRows:
        """The rows of `rows` whose requests are kept."""
        kept = self.keeps(rows.request)
        if kept.all():
            return rows
        given = ((f.name, getattr(rows, f.name)) for f in fields(rows))
        return replace(rows, **{n: array[kept] for n, array in given if array is not None})


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose bits look random."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))
