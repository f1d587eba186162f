"""Which tokens a placement is judged on, and the steps they come in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace import Batching, Phase, Trace
from moeprof.trace.batching import RequestRows, request_rows

MAX_NUM_BATCHED_TOKENS = 8192


def recorded_steps(
    trace: Trace, keep: NDArray[np.bool_] | None = None, phase: Phase | None = None
) -> Batching:
    """The steps that were recorded; with `keep` [tokens] or `phase`, of those tokens alone.

    Raises InputError where no token is left.
    """
    mask = np.ones(trace.tokens, bool) if keep is None else keep.copy()
    if phase is not None:
        mask &= trace.phase == phase
    rows = np.flatnonzero(mask)
    if not len(rows):
        raise InputError(f"{trace}: holds no {_named(phase)}tokens in the window that is judged")
    bounds = np.flatnonzero(np.diff(trace.step[rows])) + 1
    return Batching(rows, np.concatenate([[0], bounds, [len(rows)]]))


def batched_steps(
    trace: Trace,
    requests: RequestRows,
    batch: int,
    phase: Phase | None = None,
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
) -> Batching:
    """The steps of `requests`, `batch` of them at a time; with `phase`, of that phase's tokens.

    Raises InputError where no token is left, or for limits below 1.
    """
    batching = requests.batched(batch, max(max_num_batched_tokens, batch))
    if phase is None:
        return batching
    kept = trace.phase[batching.order] == phase
    if not kept.any():
        raise InputError(f"{trace}: holds no {_named(phase)}tokens in the window that is judged")
    held = np.concatenate([[0], np.cumsum(kept)])[batching.starts]
    return Batching(batching.order[kept], np.unique(held))


def judged_requests(trace: Trace, keep: NDArray[np.bool_] | None = None) -> RequestRows:
    """The requests of a window, for `batched_steps` and for drawing some of them anew."""
    return request_rows(trace, keep)


def _named(phase: Phase | None) -> str:
    return "" if phase is None else f"{phase.name.lower()} "
