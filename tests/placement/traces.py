"""Traces of given ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace


def routed(ids: NDArray[Any], experts: int, hidden_size: int = 8) -> Trace:
    """A trace of the tokens `ids` [tokens, layers, top_k], each a step of one request."""
    tokens, layers, top_k = ids.shape
    model = MoEModel("made-up", "", hidden_size, layers, tuple(range(layers)), experts, top_k)
    rows = TokenRows(
        step=np.arange(tokens),
        request=np.zeros(tokens, np.int32),
        position=np.arange(tokens, dtype=np.int32),
        phase=None,
        experts=ids.astype(np.uint8),
    )
    return Trace.in_memory(model, rows)
