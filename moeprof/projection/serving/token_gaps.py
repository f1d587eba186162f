"""Seconds between the tokens of a sequence (ITL), for thousands of sequences in step."""

from __future__ import annotations

from math import isfinite

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.serving.sequence import Sequence


class TokenGaps:
    """Gaps of one group: a value and how many sequences waited that long.

    Sequences that decode together share their gaps but for the first after each began.
    """

    def __init__(self) -> None:
        self._singles: list[tuple[float, int]] = []
        self._runs: list[tuple[NDArray[np.float64], int]] = []
        self._fresh: dict[Sequence, float] = {}  # time of the last token, from a prompt
        self._last_s = 0.0  # end of the last decode step: last token of all others

    def prompt_computed(self, sequence: Sequence, end_s: float) -> None:
        """A prompt yielded a token at `end_s`: the first of all, or the next after a loss of KV."""
        if isfinite(sequence.first_token_s):
            self._singles.append((end_s - sequence.last_token_s, 1))
        else:
            sequence.first_token_s = end_s
        if not sequence.done:
            self._fresh[sequence] = end_s

    def decoded(self, sequences: int, ends_s: NDArray[np.float64]) -> None:
        """All `sequences` decoded in steps that end at `ends_s` [step]."""
        first = float(ends_s[0])
        others = sequences - len(self._fresh)
        if others:
            self._singles.append((first - self._last_s, others))
        for last_s in self._fresh.values():
            self._singles.append((first - last_s, 1))
        if len(ends_s) > 1:
            self._runs.append((ends_s[1:] - ends_s[:-1], sequences))
        self._fresh.clear()
        self._last_s = float(ends_s[-1])

    def left(self, sequence: Sequence) -> None:
        """`sequence` loses its KV: remember when its last token came."""
        sequence.last_token_s = self._fresh.pop(sequence, self._last_s)

    def samples(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(seconds, how many sequences waited that long), each [sample]."""
        seconds = [np.array([gap for gap, _ in self._singles]), *(gaps for gaps, _ in self._runs)]
        counts = [np.array([count for _, count in self._singles], np.int64)]
        counts += [np.full(len(gaps), count, np.int64) for gaps, count in self._runs]
        return np.concatenate(seconds), np.concatenate(counts)
