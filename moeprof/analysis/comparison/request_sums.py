"""What a comparison needs of one layer, summed by request: any mix of requests follows from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.pairing import Requests
from moeprof.analysis.counting import expert_load, refuse_foreign_ids
from moeprof.analysis.runs import find_runs
from moeprof.trace import Phase, Trace


class Decode(NamedTuple):
    """Which tokens of a trace are decode tokens, and which of them follow each other."""

    group: NDArray[np.int32]  # [tokens] place of the request, + requests where it is a decode token
    rows: NDArray[np.int64]  # of decode tokens that another one stands right before
    before: NDArray[np.int64]  # rows of those


class LayerSums(NamedTuple):
    """Sums of one layer over the tokens of each request."""

    counts: NDArray[np.float32]  # [requests, experts] assignments
    # Of decode tokens: the share of the request's tokens that leave each expert out, for requests
    # that have any, and columns of: has any, experts shared with the token before, pairs of tokens.
    missed: NDArray[np.float32]  # [requests, experts]
    decode: NDArray[np.float32]  # [requests, 3]


def find_decode(trace: Trace, requests: Requests) -> Decode:
    """The decode tokens of `trace`: all that are not known to be of a prompt."""
    none = np.zeros(0, np.int64)
    if trace.counts_only or (trace.phase == Phase.PREFILL).all():
        return Decode(requests.place, none, none)
    runs = find_runs(trace)
    group = requests.place.copy()
    group[runs.rows] += len(requests.indices)
    behind = np.delete(runs.rows, runs.starts[:-1])
    return Decode(group, behind, np.delete(runs.rows, runs.starts[1:] - 1))


def sum_layer(trace: Trace, layer: int, requests: Requests, decode: Decode) -> LayerSums:
    """The sums of `layer`. TraceError where an id names no expert."""
    from moeprof.analysis.kernels import add_assignments  # Numba costs a second to import

    size, count = trace.experts_per_layer, len(requests.indices)
    if trace.counts_only:
        load = expert_load(trace)[trace.layers.index(layer)]
        return LayerSums(
            load[None].astype(np.float32),
            np.zeros((1, size), np.float32),
            np.zeros((1, 3), np.float32),
        )
    ids, recorded = layer_ids(trace, layer)
    counts = np.zeros((2, count, size), np.int64)
    grouped = counts.reshape(2 * count, size)
    foreign = add_assignments(ids[recorded], decode.group[recorded], grouped)
    refuse_foreign_ids(trace, layer, foreign)
    decode_tokens = counts[1].sum(axis=1) / trace.top_k
    missed = 1 - counts[1] / np.maximum(decode_tokens, 1)[:, None]
    shared, pairs = _repeats(ids, recorded, requests, decode)
    there = decode_tokens > 0
    return LayerSums(
        counts.sum(axis=0).astype(np.float32),
        (missed * there[:, None]).astype(np.float32),
        np.stack([there, shared, pairs], axis=1).astype(np.float32),
    )


def layer_ids(
    trace: Trace, layer: int
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_] | slice]:
    """[tokens, k] ids of every token, and which of them were recorded; a slice where all were."""
    recorded = trace.recorded(layer)
    if recorded.all():
        return trace.experts(layer), slice(None)
    ids = np.zeros((trace.tokens, trace.top_k), trace.experts(layer).dtype)
    ids[recorded] = trace.experts(layer)
    return ids, recorded


def count_shared(
    one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger]
) -> NDArray[np.uint8]:
    """[tokens] ids that each row of `one` [tokens, k] has in common with that of `other`."""
    shared = np.zeros(len(one), np.uint8)
    columns = np.ascontiguousarray(other.T)
    for left in np.ascontiguousarray(one.T):
        for right in columns:
            shared += (left == right).view(np.uint8)
    return shared


def _repeats(
    ids: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_] | slice,
    requests: Requests,
    decode: Decode,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[requests] experts shared by consecutive decode tokens, and pairs of such tokens."""
    at, before = decode.rows, decode.before
    if not isinstance(recorded, slice):
        both = recorded[at] & recorded[before]
        at, before = at[both], before[both]
    kinds, count = ids.shape[1] + 1, len(requests.indices)
    shared = count_shared(ids.take(at, axis=0), ids.take(before, axis=0))
    cell = requests.place[at].astype(np.int64) * kinds + shared
    pairs = np.bincount(cell, minlength=count * kinds).reshape(count, kinds).astype(np.float64)
    return pairs @ np.arange(kinds), pairs.sum(axis=1)
