"""The figures of one layer for every draw of requests, from its sums by request.

mean_imbalance, gini and entropy are those of `analyze load`, next_token_repeat that of `analyze
locality`. A draw of weights w_r makes loads sum_r w_r n_r(e). distinct_experts.B are those of B
decode tokens of requests drawn with replacement: sum_e 1 - (sum_r w_r x_r(e) / sum_r w_r)^B with
x_r(e) the share of request r's decode tokens that leave e out. Divergences, between labels and
between A and B, are the generalized Jensen-Shannon divergence in bits (Lin 1991,
doi:10.1109/18.61115).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.comparison.request_sums import LayerSums
from moeprof.analysis.evenness import entropy_bits

BATCHES = (8, 64)  # tokens of as many requests
Floats = NDArray[np.float32]


class Totals(NamedTuple):
    """Sums over the requests of a draw."""

    load: Floats  # [labels, draws, experts] assignments of each label's requests
    missed: Floats  # [draws, experts]
    decode: Floats  # [draws, (requests that decode, experts shared, pairs of tokens)]

    def plus(self, other: Totals) -> Totals:
        """The requests of both; one draw of either goes with each of the other."""
        return Totals(*(one + more for one, more in zip(self, other, strict=True)))

    def without(self, part: Totals) -> Totals:
        """The requests of this one draw that are not in each draw of `part`."""
        return Totals(*(whole - less for whole, less in zip(self, part, strict=True)))


class DrawnRequests:
    """Weights [draws, requests], cut by label once for all layers."""

    def __init__(self, weights: Floats, codes: NDArray[np.intp], labels: int) -> None:
        """`codes` [requests] are labels below `labels`."""
        members = [np.flatnonzero(codes == code) for code in range(labels)]
        self._parts = [(of, np.ascontiguousarray(weights[:, of])) for of in members]
        self.draws = len(weights)

    def totals(self, sums: LayerSums) -> Totals:
        """The totals of every draw."""
        size = sums.counts.shape[1]
        columns = np.concatenate(sums, axis=1)  # one product of matrices for all of them
        found = np.stack([weights @ columns[of] for of, weights in self._parts])
        rest = found[:, :, size:].sum(axis=0)
        return Totals(found[:, :, :size], rest[:, :size], rest[:, size:])


def figures_of(totals: Totals, top_k: int, labels: int) -> dict[str, NDArray[np.float64]]:
    """[draws] of every metric; NaN where a draw has no tokens to tell it from.

    The first `labels` rows of the loads are labels to tell apart, the others requests without.
    """
    load = totals.load.sum(axis=0)
    share = _shares(load)
    size = load.shape[1]
    order = (2 * np.arange(1, size + 1) - size - 1).astype(np.float32)
    figures = {
        "mean_imbalance": share.max(axis=1) * size,
        "gini": np.sort(share, axis=1) @ order / size,
        "entropy": entropy_bits(share),
    }
    deciding, shared, pairs = totals.decode.T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures["next_token_repeat"] = shared / pairs / top_k
        missed = totals.missed / deciding[:, None]
    for size_of_batch in BATCHES:
        told = deciding[0] >= size_of_batch  # the recording has as many requests
        distinct = (1 - missed**size_of_batch).sum(axis=1)
        figures[f"distinct_experts.{size_of_batch}"] = distinct if told else distinct * np.nan
    if labels > 1:
        parts = _shares(totals.load[:labels])
        apart = entropy_bits(parts.mean(axis=0, dtype=np.float32)) - entropy_bits(parts).mean(
            axis=0
        )
        figures["specialization"] = apart
    return {name: values.astype(np.float64) for name, values in figures.items()}


def divergence(a: Totals, b: Totals) -> NDArray[np.float64]:
    """[draws] Jensen-Shannon divergence in bits between the expert distributions of A and B."""
    p, q = _shares(a.load.sum(axis=0)), _shares(b.load.sum(axis=0))
    apart = entropy_bits((p + q) / 2) - (entropy_bits(p) + entropy_bits(q)) / 2
    return np.maximum(apart, 0).astype(np.float64)  # rounding leaves -1e-8 of nothing


def _shares(load: Floats) -> Floats:
    """`load` over its sum along the last axis; zeros where nothing was assigned."""
    shares: Floats = load / np.maximum(load.sum(axis=-1, keepdims=True), 1)
    return shares
