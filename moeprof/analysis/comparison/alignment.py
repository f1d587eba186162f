"""Which expert of B stands for which of A, where ids mean nothing: other seeds, other trainings.

Per layer the assignment of experts that agrees most (Hungarian method: Kuhn 1955,
doi:10.1002/nav.3800020109, by SciPy). Where both recorded the same tokens, two experts agree on the
tokens that both are chosen for; else by their shares of the load of each label. A best matching
always finds something, so it is fitted on half of the requests, judged on the others, and stands
beside one that was fitted to shuffled tokens or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.agreement import common_ids
from moeprof.analysis.comparison.draws import label_codes
from moeprof.analysis.comparison.layers import match_layers
from moeprof.analysis.comparison.pairing import CommonTokens, Requests
from moeprof.analysis.comparison.request_sums import count_shared
from moeprof.analysis.comparison.results import Alignment, LayerAlignment
from moeprof.analysis.counting import count_layer
from moeprof.analysis.uncertainty import deal_halves
from moeprof.errors import InputError
from moeprof.threads import map_threads
from moeprof.trace import Trace

SAMPLE = 1 << 16  # tokens of each half: 256 pairs of experts for each of M3's 16,384, at top-4

# Of a layer: the expert of B for each of A, and four shares: as they are, fitted, matched, null.
Matched = tuple[NDArray[np.intp], tuple[float, float, float, float]]


def align_experts(
    a: Trace,
    b: Trace,
    requests: tuple[Requests, Requests],
    common: CommonTokens | None,
    labels: list[str],
    seed: int,
) -> Alignment:
    """The matching of experts of every layer, by `common` tokens, else by `labels` of both.

    Raises InputError where the layers are not alike, or where there is neither.
    """
    layers = match_layers(a, b)
    if not layers:
        raise InputError(f"{a} and {b}: experts of layers that are not alike cannot be aligned")
    if common is not None:
        by = "the tokens that they share"
        match = _by_tokens(a, b, requests[0], common, seed)
    elif labels:
        by = f"their loads on {len(labels)} labels"
        match = _by_labels(a, b, requests, labels, seed)
    else:
        raise InputError(
            f"{a} and {b}: experts are aligned by tokens or by at least two labels that both "
            "recorded; there are neither"
        )
    found = map_threads(match, layers)
    return _judged(by, [pair[0] for pair in layers], found)


def _judged(by: str, layers: Sequence[int], found: Sequence[Matched]) -> Alignment:
    shares = np.mean([share for _, share in found], axis=0).tolist()
    moved = [int((experts != np.arange(len(experts))).sum()) for experts, _ in found]
    return Alignment(
        by=by,
        as_they_are=shares[0],
        fitted=shares[1],
        matched=shares[2],
        null=shares[3],
        moved=float(
            np.mean([n / len(experts) for n, (experts, _) in zip(moved, found, strict=True)])
        ),
        per_layer=[
            LayerAlignment(layer, experts.tolist(), share[2], n)
            for layer, n, (experts, share) in zip(layers, moved, found, strict=True)
        ],
    )


def _by_tokens(
    a: Trace, b: Trace, requests: Requests, common: CommonTokens, seed: int
) -> Callable[[tuple[int, int]], Matched]:
    rng = np.random.default_rng(seed)
    half = deal_halves(len(requests.indices), rng)[common.request]
    rows = [rng.permutation(np.flatnonzero(half == part))[:SAMPLE] for part in (0, 1)]
    if not all(map(len, rows)):
        raise InputError(f"{a} and {b}: aligning takes the same tokens of at least two requests")
    parts = [
        CommonTokens(common.rows_a[part], common.rows_b[part], common.request[part], "")
        for part in rows
    ]
    return partial(_match_by_tokens, a, b, parts)


def _match_by_tokens(
    a: Trace, b: Trace, parts: Sequence[CommonTokens], layers: tuple[int, int]
) -> Matched:
    (fit_a, fit_b, _), (test_a, test_b, _) = (common_ids(a, b, layers, part) for part in parts)
    size = a.experts_per_layer
    experts = best_matching(_both_chosen(fit_a, fit_b, size))
    shuffled = best_matching(_both_chosen(fit_a, np.roll(fit_b, len(fit_b) // 2, axis=0), size))

    shares = (
        _agreement(np.arange(size), test_a, test_b),
        _agreement(experts, fit_a, fit_b),
        _agreement(experts, test_a, test_b),
        _agreement(shuffled, test_a, test_b),
    )
    return experts, shares


def _agreement(
    experts: NDArray[np.intp],
    one: NDArray[np.unsignedinteger],
    other: NDArray[np.unsignedinteger],
) -> float:
    """Share of the experts of `other` [tokens, k] that those of `one` stand for."""
    shared = count_shared(experts.astype(one.dtype)[one], other)
    return float(shared.mean() / one.shape[1])


def best_matching(gain: NDArray[np.number]) -> NDArray[np.intp]:
    """[rows] the column that each row of `gain` is matched to, so that their sum is largest."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(gain, maximize=True)
    matched: NDArray[np.intp] = columns
    return matched


def _both_chosen(
    one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger], size: int
) -> NDArray[np.int64]:
    """[experts, experts] tokens that choose e of `one` and f of `other`, both [tokens, k]."""
    cells = one[:, :, None].astype(np.int64) * size + other[:, None, :]
    return np.bincount(cells.ravel(), minlength=size * size).reshape(size, size)


def _by_labels(
    a: Trace, b: Trace, requests: tuple[Requests, Requests], labels: list[str], seed: int
) -> Callable[[tuple[int, int]], Matched]:
    rng = np.random.default_rng(seed)
    groups = []
    for side in requests:
        codes = label_codes(side, labels)
        half = deal_halves(len(codes), rng, codes)
        groups.append(half * (len(labels) + 1) + codes)
    shuffled = rng.permutation(len(groups[1]))  # B's requests trade halves and labels
    groups.append(groups[1][shuffled])
    tokens = [
        group[side.place].astype(np.int32)
        for group, side in zip(groups, (*requests, requests[1]), strict=True)
    ]
    return partial(_match_by_labels, a, b, tokens, len(labels))


def _match_by_labels(
    a: Trace,
    b: Trace,
    groups: Sequence[NDArray[np.int32]],
    labels: int,
    layers: tuple[int, int],
) -> Matched:
    counts = [
        count_layer(trace, layer, group, 2 * (labels + 1))
        for trace, layer, group in zip((a, b, b), (*layers, layers[1]), groups, strict=True)
    ]
    profiles = [_profiles(count, labels) for count in counts]  # [half, labels, experts] of each
    (fit_a, test_a), (fit_b, test_b), (fit_null, _) = profiles
    experts, shuffled = (_nearest(fit_a, fit) for fit in (fit_b, fit_null))
    shares = (
        _overlap(test_a, test_b),
        _overlap(fit_a, fit_b[:, experts]),
        _overlap(test_a, test_b[:, experts]),
        _overlap(test_a, test_b[:, shuffled]),
    )
    return experts, shares


def _profiles(counts: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    """[2, labels, experts] share of each half's assignments of a label that go to each expert."""
    of_labels = counts.reshape(2, labels + 1, -1)[:, :labels]
    shares: NDArray[np.float64] = of_labels / np.maximum(of_labels.sum(axis=2, keepdims=True), 1)
    return shares


def _nearest(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.intp]:
    """The matching that leaves the least difference between profiles [labels, experts]."""
    return best_matching(-np.abs(one[:, :, None] - other[:, None, :]).sum(axis=0))


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean over labels of the load that both profiles [labels, experts] have in common, 0 to 1."""
    return float(np.minimum(one, other).sum(axis=1).mean())
