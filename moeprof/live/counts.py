"""Windows of counts, for recordings that keep no order of tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.trace import Phase
from moeprof.trace.schema import Manifest


class WindowCounts(NamedTuple):
    """Assignments of one window, and how many tokens they are of."""

    load: NDArray[np.int64]  # [L, E]
    tokens: int
    prefill_tokens: int


def windows_of(batch: pa.RecordBatch, manifest: Manifest) -> list[WindowCounts]:
    """Each window of `batch`, in order; rows that name no layer or expert are passed over.

    Tokens are known where some layer was recorded for all of them.
    """
    window, layer, expert, tokens = (batch.column(i).to_numpy() for i in range(4))
    prompt = np.zeros(len(window), np.int64)
    if batch.num_columns > 4:
        phase = batch.column(4).fill_null(Phase.UNKNOWN).to_numpy()
        prompt = (phase == Phase.PREFILL).astype(np.int64)
    places = {number: i for i, number in enumerate(manifest.layers)}
    row = np.array([places.get(int(number), -1) for number in layer], np.int64)
    known = (row >= 0) & (expert >= 0) & (expert < manifest.experts) & (tokens >= 0)
    found = []
    for number in np.unique(window):
        here = known & (window == number)
        load = np.zeros((2, len(places), manifest.experts), np.int64)
        np.add.at(load, (prompt[here], row[here], expert[here]), tokens[here])
        by_phase = load.sum(axis=2).max(axis=1, initial=0) // manifest.top_k
        found.append(WindowCounts(load.sum(axis=0), int(by_phase.sum()), int(by_phase[1])))
    return found
