"""The sequences of a group that decode, all one step at a time and so in step with each other."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.serving.sequence import Sequence


class Decoding:
    """Sequences by order of entry, with `steps`, the group's count of decode steps.

    A sequence says at which count it began and will end, so a step changes none of them; sums and
    arrays over all change only when one joins or leaves. `advance` tokens come of a step.
    """

    def __init__(self, advance: float) -> None:
        self.advance = advance
        self.steps = 0
        self._sequences: dict[int, Sequence] = {}  # by order
        self._ends: list[tuple[int, int]] = []  # heap of (finish, order)
        self._prompts = 0  # sums over sequences
        self._starts = 0
        self._arrays: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    @property
    def steps_to_first_end(self) -> int:
        """Steps until the first sequence ends."""
        return self._ends[0][0] - self.steps

    def tokens(self, ahead: int = 0) -> float:
        """Tokens in the KV of all after `ahead` more steps, with partial ones of speculation."""
        made = len(self) * (self.steps + ahead) - self._starts
        return self._prompts + self.advance * made

    def blocks(self, block_tokens: int, ahead: int) -> int:
        """Blocks of KV that they hold after `ahead` more steps."""
        if not self._sequences:
            return 0
        if self._arrays is None:
            prompts = np.array([s.prompt for s in self], np.int64)
            self._arrays = prompts, np.array([s.start for s in self], np.int64)
        prompts, starts = self._arrays
        grown = np.floor((self.steps + ahead - starts) * self.advance).astype(np.int64)
        return int((-(-(prompts + grown) // block_tokens)).sum())

    def join(self, sequence: Sequence) -> None:
        """`sequence` decodes from the next step on."""
        sequence.begin_decode(self.steps)
        self._sequences[sequence.order] = sequence
        heappush(self._ends, (sequence.finish, sequence.order))
        self._count(sequence, 1)

    def step(self, steps: int) -> list[Sequence]:
        """All make `steps` steps; those that end, in the order in which they do, leave."""
        self.steps += steps
        ended = []
        while self._ends and self._ends[0][0] <= self.steps:
            ended.append(self._sequences.pop(heappop(self._ends)[1]))
            self._count(ended[-1], -1)
        return ended

    def remove(self, sequence: Sequence) -> None:
        """`sequence` leaves before its end."""
        del self._sequences[sequence.order]
        self._ends.remove((sequence.finish, sequence.order))
        self._ends.sort()  # a sorted list is a heap
        self._count(sequence, -1)

    def _count(self, sequence: Sequence, sign: int) -> None:
        self._prompts += sign * sequence.prompt
        self._starts += sign * sequence.start
        self._arrays = None
