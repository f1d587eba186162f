"""Sets of experts as bits: a set is `words` 64-bit numbers, expert e is bit e of them.

Unions and what two sets share are then one operation on a word, for all tokens at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.trace import Trace

Ids = NDArray[np.unsignedinteger[Any]]
Sets = NDArray[np.uint64]  # [words, sets]


def layer_ids(trace: Trace, layer: int) -> tuple[Ids, NDArray[np.bool_]]:
    """[tokens, k] ids of one layer, 0 where not recorded, and [tokens] where it was recorded.

    TraceError where an id names no expert.
    """
    recorded = trace.recorded(layer)
    ids = trace.experts(layer)
    refuse_foreign_ids(trace, layer, int((ids >= trace.experts_per_layer).sum()))
    if not recorded.all():
        spread = np.zeros((trace.tokens, trace.top_k), ids.dtype)
        spread[recorded] = ids
        ids = spread
    return ids, recorded


def chosen_rows(ids: Ids, rows: NDArray[np.int64]) -> Ids:
    """[rows, k] those rows of `ids` [tokens, k]: `ids[rows]`, a row at a time and not an id."""
    whole = np.ascontiguousarray(ids).view(np.dtype((np.void, ids.shape[1] * ids.itemsize)))
    return whole.ravel().take(rows).view(ids.dtype).reshape(len(rows), -1)


def sets_of(ids: Ids, experts: int, there: NDArray[np.bool_] | None = None) -> Sets:
    """[words, tokens] the experts of each token of `ids` [tokens, k]; none where not `there`."""
    words = -(-experts // 64)
    columns = np.ascontiguousarray(ids.T)
    expert = np.arange(experts, dtype=np.uint64)
    bit = np.uint64(1) << expert % np.uint64(64)
    sets = np.zeros((words, len(ids)), np.uint64)
    for word in range(words):
        table = np.where(expert // np.uint64(64) == word, bit, np.uint64(0))
        for column in columns:
            sets[word] |= table.take(column, mode="clip")  # ids were checked
    if there is not None and not there.all():
        sets[:, ~there] = 0
    return sets


def unions_of(sets: Sets, first: NDArray[np.int64]) -> Sets:
    """[words, pairs] union of each of the `first` sets and the one after it."""
    return np.stack([word.take(first) | word.take(first + 1) for word in sets])


def sizes_of(sets: Sets) -> NDArray[np.uint16]:
    """[sets] how many experts each holds."""
    bits = np.bitwise_count(sets)
    sizes: NDArray[np.uint16] = bits[0].astype(np.uint16)
    for word in bits[1:]:
        sizes += word
    return sizes
