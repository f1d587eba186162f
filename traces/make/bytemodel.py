"""The baseline: a byte model of order 2 with Witten-Bell interpolation.

Each order k estimates a byte c after a history h of k bytes as

    p_k(c | h) = (count(h, c) + kinds(h) * p_{k-1}(c | h')) / (count(h) + kinds(h))

where kinds(h) is the number of different bytes seen after h, h' is h without its oldest byte,
and order -1 is uniform. A document starts with a history of its own symbol, not with bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BYTES = 256
_START = 256
_HISTORY = BYTES + 1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def _histories(text: bytes) -> tuple[Ints, Ints, Ints]:
    """(byte, byte before it, byte before that) for every byte of a document."""
    symbols = np.concatenate(
        [np.array([_START, _START]), np.frombuffer(text, dtype=np.uint8).astype(np.int64)]
    )
    return symbols[2:], symbols[1:-1], symbols[:-2]


class OrderTwo:
    """Counts of bytes after 0, 1 and 2 bytes of history."""

    def __init__(self, documents: Iterable[bytes]) -> None:
        self._counts = np.zeros((_HISTORY * _HISTORY, BYTES), dtype=np.float32)
        flat = self._counts.reshape(-1)
        for text in documents:
            byte, last, older = _histories(text)
            cells, times = np.unique((older * _HISTORY + last) * BYTES + byte, return_counts=True)
            flat[cells] += times
        by_last = self._counts.reshape(_HISTORY, _HISTORY, BYTES).sum(axis=0, dtype=np.float64)
        everything = by_last.sum(axis=0, keepdims=True)
        uniform = np.full((1, BYTES), 1.0 / BYTES)
        self._order0 = self._interpolate(everything, uniform)
        self._order1 = self._interpolate(by_last, self._order0)
        self._total = self._counts.sum(axis=1, dtype=np.float64)
        self._kinds = np.count_nonzero(self._counts, axis=1)

    @staticmethod
    def _interpolate(counts: Floats, lower: Floats) -> Floats:
        kinds = np.count_nonzero(counts, axis=1)[:, None]
        total = counts.sum(axis=1, keepdims=True)
        mixed = (counts + kinds * lower) / np.maximum(total + kinds, 1)
        return np.where(total > 0, mixed, lower)

    def bits(self, text: bytes) -> float:
        """The code length of a document in bits; every byte of it is predicted."""
        byte, last, older = _histories(text)
        history = older * _HISTORY + last
        kinds, total = self._kinds[history], self._total[history]
        lower = self._order1[last, byte]
        mixed = (self._counts[history, byte] + kinds * lower) / np.maximum(total + kinds, 1)
        return float(-np.log2(np.where(total > 0, mixed, lower)).sum())
