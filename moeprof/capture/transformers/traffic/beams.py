"""Beam search: the rows of a forward are hypotheses, and most of them are dropped.

Traffic are the tokens of the sequences that `generate` returned, each once: what other rows
routed served no request. Which rows those were is known only when the search has ended, so its
steps are held until then. A request is a returned sequence; where two share their beginning, it
belongs to the first, and the second starts where they part, as after a prefix-cache hit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.routing import HostCopy
from moeprof.capture.transformers.traffic.step import Batch, Step
from moeprof.capture.transformers.traffic.tokens import Traffic

MAX_HELD_BYTES = 128 << 20
TOO_LONG = "the beam search is too long to hold until its end"


@dataclass(frozen=True)
class Reorder:
    """After a step, row r goes on as what row `parents[r]` was."""

    batch: Batch
    parents: HostCopy  # [rows]


class UnknownBeamError(Exception):
    """The rows of a returned sequence cannot be told."""


class BeamSearch:
    """The steps of one search. Level 0 is the prompt, level n feeds the n-th new token."""

    def __init__(self, batch: Batch) -> None:
        assert batch.beams is not None
        self._batch = batch
        self._beams = batch.beams
        self._held_bytes = 0
        self._steps: list[tuple[int, Step, Traffic]] = []  # with their levels
        self._fed: list[NDArray[np.int64]] = [np.zeros(batch.rows, np.int64)]  # by level: [rows]
        self._parents: list[NDArray[np.int64]] = []  # after each level: [rows]

    def add(self, step: Step, traffic: Traffic) -> None:
        """The next step, with all of its rows; beyond the bound without its routing."""
        self._held_bytes += step.nbytes
        if self._held_bytes > MAX_HELD_BYTES:
            step.routing, step.drop_reason = None, TOO_LONG
        if step.past >= self._batch.prompt_width:
            fed = np.full(self._batch.rows, -1)
            fed[traffic.request - self._batch.first_request] = traffic.token_id
            self._fed.append(fed)
        self._steps.append((len(self._fed) - 1, step, traffic))

    def reorder(self, reorder: Reorder) -> None:
        """What the search decided after the last step."""
        self._parents.append(reorder.parents.array().astype(np.int64))

    def everything(self) -> Iterator[tuple[Step, Traffic]]:
        """All steps with all of their rows."""
        return ((step, traffic) for _, step, traffic in self._steps)

    def survivors(self, new_tokens: NDArray[np.int64]) -> list[tuple[Step, Traffic]]:
        """All steps, with the rows that the returned sequences came from.

        `new_tokens` [requests, columns], padded behind an end. Raises UnknownBeamError.
        """
        owners = np.full((len(self._fed), self._batch.rows), -1)  # by level and row: a request
        history = self._histories()
        for request, sequence in enumerate(new_tokens):
            fed = self.length(sequence) - 1  # the last token is chosen and never fed
            row = self._find(request, sequence[:fed], history[min(fed, len(history) - 1)])
            for level in range(min(fed, len(history) - 1), -1, -1):
                if owners[level, row] < 0:
                    owners[level, row] = request
                if level:
                    row = self._parents[level - 1][row]
        return [(step, self._keep(traffic, owners[level])) for level, step, traffic in self._steps]

    def length(self, sequence: NDArray[np.int64]) -> int:
        """New tokens of a returned sequence, its end included."""
        ends = np.flatnonzero(np.isin(sequence, self._beams.stop_ids))
        return int(ends[0]) + 1 if len(ends) else len(sequence)

    def _histories(self) -> list[NDArray[np.int64]]:
        """By level: the new tokens that each row has been fed so far, [rows, level]."""
        if len(self._parents) < len(self._fed) - 1:
            raise UnknownBeamError
        histories = [np.zeros((self._batch.rows, 0), np.int64)]
        for parents, fed in zip(self._parents, self._fed[1:], strict=False):
            histories.append(np.column_stack([histories[-1][parents], fed]))
        return histories

    def _find(self, request: int, fed: NDArray[np.int64], history: NDArray[np.int64]) -> int:
        """The row that was fed just these tokens, among those of the request's prompt."""
        first = request // self._beams.returned * self._beams.width
        mine = history[first : first + self._beams.width]
        if mine.shape[1] != len(fed):
            raise UnknownBeamError
        rows = np.flatnonzero((mine == fed).all(axis=1))
        if not len(rows):
            raise UnknownBeamError
        return first + int(rows[0])

    def _keep(self, traffic: Traffic, owner: NDArray[np.int64]) -> Traffic:
        """The part of `traffic` in rows that have an owner, whose requests they become."""
        owned = owner[traffic.request - self._batch.first_request]
        kept = owned >= 0
        live = np.zeros_like(traffic.live)
        live[np.flatnonzero(traffic.live)[kept]] = True
        return replace(
            traffic,
            live=live,
            step=traffic.step[kept],
            request=(self._batch.first_request + owned[kept]).astype(np.int32),
            position=traffic.position[kept],
            phase=traffic.phase[kept],
            token_id=traffic.token_id[kept],
        )
