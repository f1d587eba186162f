"""Traces of known affinity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace


def trace_of(
    layers: Sequence[NDArray[np.integer]], experts: int, request: NDArray[np.integer]
) -> Trace:
    """A trace of `layers`, each [tokens, k], of tokens in order of `request` [tokens]."""
    ids = np.stack(layers, axis=1)
    model = MoEModel(
        "made", "made", 1, len(layers), tuple(range(len(layers))), experts, ids.shape[2]
    )
    starts = np.flatnonzero(np.diff(request, prepend=-1))
    position = np.arange(len(request)) - np.repeat(starts, np.diff([*starts, len(request)]))
    rows = TokenRows(
        step=np.arange(len(request)),
        request=request.astype(np.int32),
        position=position.astype(np.int32),
        phase=None,
        experts=ids.astype(np.uint8),
    )
    return Trace.in_memory(model, rows)


def independent(
    rng: np.random.Generator, tokens: int, load: NDArray[np.floating], k: int
) -> NDArray[np.intp]:
    """[tokens, k] distinct experts by the Gumbel trick, each token for itself."""
    score = np.log(load) + rng.gumbel(size=(tokens, len(load)))
    return np.argsort(-score, axis=1)[:, :k]


def requests_of(tokens: int, each: int) -> NDArray[np.intp]:
    return np.arange(tokens) // each
