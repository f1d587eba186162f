"""Tokens that use two experts: of one layer, or of one layer and the next. The one way to count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.affinity.sample import TokenSample
from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.trace import Trace

_ROWS = 8192  # at a time: their codes stay in the cache

Ids = NDArray[np.unsignedinteger]


def count_together(experts: Ids, size: int) -> NDArray[np.int64]:
    """[size, size] tokens that use both experts; on the diagonal, that use the one.

    `experts` [tokens, k] below `size`.
    """
    first, second = np.triu_indices(experts.shape[1], 1)
    above = np.zeros(size * size, np.int64)
    for start in range(0, len(experts), _ROWS):
        part = experts[start : start + _ROWS].astype(np.intp)
        codes = part[:, first] * size + part[:, second]
        above += np.bincount(codes.ravel(), minlength=size * size)
    together = above.reshape(size, size) + above.reshape(size, size).T
    np.fill_diagonal(together, np.bincount(experts.ravel(), minlength=size))
    return together


def count_following(before: Ids, after: Ids, size: int) -> NDArray[np.int64]:
    """[size, size] tokens that use the first expert in `before` and the second in `after`.

    Both [tokens, k], the same tokens' experts of two layers.
    """
    counts = np.zeros(size * size, np.int64)
    for start in range(0, len(before), _ROWS):
        first = before[start : start + _ROWS].astype(np.intp) * size
        codes = first[:, :, None] + after[start : start + _ROWS, None, :]
        counts += np.bincount(codes.ravel(), minlength=size * size)
    return counts.reshape(size, size)


def count_by_request(
    experts: Ids, request: NDArray[np.int64], requests: int, size: int
) -> NDArray[np.float64]:
    """[requests, size] tokens of each request that use each expert; `experts` [tokens, k]."""
    codes = request[:, None] * size + experts
    counts = np.bincount(codes.ravel(), minlength=requests * size)
    return counts.reshape(requests, size).astype(np.float64)


def sampled_ids(trace: Trace, layer: int, sample: TokenSample) -> tuple[Ids, NDArray[np.bool_]]:
    """[tokens of the sample, k] ids of a layer, and which of them were recorded."""
    known, recorded = trace.experts(layer), trace.recorded(layer)
    if len(known) == len(recorded):
        ids, there = known.take(sample.rows, axis=0), np.ones(len(sample.rows), bool)
    else:
        there = recorded[sample.rows]
        ids = np.zeros((len(there), trace.top_k), known.dtype)
        ids[there] = known[(np.cumsum(recorded) - 1)[sample.rows[there]]]
    if ids.max(initial=0) >= trace.experts_per_layer:
        refuse_foreign_ids(trace, layer, int((ids >= trace.experts_per_layer).sum()))
    return ids, there
