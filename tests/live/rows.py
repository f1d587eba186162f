"""Rows of made-up engine steps, and a source that brings them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moeprof import MoEModel
from moeprof.live import Poll, Shape, State, Status, StepRows
from moeprof.trace import Phase, TokenRows


def engine_rows(
    model: MoEModel,
    sizes: Sequence[int],
    *,
    seed: int = 0,
    prefill: float = 0.2,
    missing: float = 0.0,
    first_step: int = 0,
) -> TokenRows:
    """A step of each of `sizes` rows, some of them prompts, some layers not recorded."""
    rng = np.random.default_rng(seed)
    tokens, layers = sum(sizes), len(model.moe_layers)
    scores = rng.random((tokens, layers, model.experts)) ** 3 + np.arange(model.experts) * 0.02
    return TokenRows(
        step=np.repeat(np.arange(len(sizes)), sizes).astype(np.int64) + first_step,
        request=np.zeros(tokens, np.int32),
        position=np.arange(tokens, dtype=np.int32),
        phase=np.where(rng.random(tokens) < prefill, Phase.PREFILL, Phase.DECODE).astype(np.int8),
        experts=np.argsort(-scores, axis=2)[:, :, : model.top_k].astype(np.uint8),
        recorded=rng.random((tokens, layers)) >= missing if missing else None,
    )


def part(rows: TokenRows, kept: np.ndarray) -> TokenRows:
    """The rows where `kept`."""
    return replace(
        rows,
        step=rows.step[kept],
        request=rows.request[kept],
        position=rows.position[kept],
        phase=None if rows.phase is None else rows.phase[kept],
        experts=rows.experts[kept],
        recorded=None if rows.recorded is None else rows.recorded[kept],
    )


def steps_of(rows: TokenRows) -> list[StepRows]:
    """Rows by step, one by one."""
    found = []
    for step in dict.fromkeys(rows.step.tolist()):
        here = part(rows, rows.step == step)
        assert here.phase is not None
        found.append(StepRows(step, here.phase, here.experts, here.recorded))
    return found


class ScriptedSource:
    """Polls that were made beforehand; `status` may be changed between two."""

    name = "script"

    def __init__(self, model: MoEModel, polls: Sequence[list[StepRows]]) -> None:
        shape = Shape(tuple(model.moe_layers), model.experts, model.top_k)
        self.status = Status(State.RECORDING, shape=shape)
        self._polls = list(polls)

    def poll(self) -> Poll:
        return Poll(self.status, self._polls.pop(0) if self._polls else [])

    def close(self) -> None:
        pass
