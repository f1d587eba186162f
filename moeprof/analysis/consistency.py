"""Local routing consistency: does a small fixed group of experts serve a stretch of text?

The two measures of Liang et al., Not All Models Suit Expert Offloading (arXiv 2505.16056), as
their code has them (github.com/ljcleo/moe-lrc at 4ff45dd, src/30_srp_calc.py, 31_srp_refine.py,
41_sch_calc.py). With c_s(e) the tokens of segment s, m consecutive tokens, that use expert e:
SRP(m) = max over t of F1, where each segment's group is the experts with c_s(e) >= t: of all pairs
(token of s, expert of the group) and all assignments, what both hold is sum of those c_s(e), so
F1(t) = 2 sum c_s(e) [c_s(e) >= t] / (m #{(s, e): c_s(e) >= t} + assignments).
The group's mean size at that t over top-k is the cache that SRP asks for.
SCH(m, r) = hit rate of a cache of r k experts a layer that must take in every expert asked for and
then drops the one with the fewest uses in the next m - 1 tokens, of those the least recent; the
first r k experts of a sequence are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.expert_sets import Ids
from moeprof.analysis.runs import Runs
from moeprof.result import Result

SEGMENTS = (4, 16, 64, 256)  # tokens, those of the paper
_TOKENS = 16_384  # of the segments that are looked at, of a layer and a length


@dataclass(frozen=True)
class SegmentConsistency(Result):
    """SRP of segments of one length, all layers together."""

    tokens: int  # m, length of a segment
    srp: float  # F1 in (0, 1]
    srp_null: float  # the same of segments made of tokens from anywhere: popularity alone
    group_experts: float  # mean size of the best group, experts of a layer
    segments: int  # looked at, of each layer


class Segments(NamedTuple):
    """Places in `Runs.rows`, [segments, m]: consecutive tokens of a run, or any."""

    consecutive: NDArray[np.int64]
    shuffled: NDArray[np.int64]


def choose_segments(runs: Runs, length: int, seed: int) -> Segments | None:
    """Segments of `length` consecutive tokens, and as many of any tokens; None: no run has one.

    Every begin, as in the paper, or as many spread evenly where those are too many.
    """
    lengths = np.diff(runs.starts)
    count = np.maximum(lengths - length + 1, 0)
    if not count.any():
        return None
    begins = np.repeat(runs.starts[:-1] - (np.cumsum(count) - count), count) + np.arange(
        count.sum()
    )
    kept = min(len(begins), max(1, _TOKENS // length))
    begins = begins[np.linspace(0, len(begins) - 1, kept).astype(int)]
    anywhere = np.random.default_rng(seed).integers(len(runs.rows), size=(kept, length))
    return Segments(begins[:, None] + np.arange(length), anywhere)


def use_histogram(
    ids: Ids, there: NDArray[np.bool_], places: NDArray[np.int64], experts: int
) -> NDArray[np.int64]:
    """[m + 1] pairs of a segment and an expert by the tokens of the segment that use it.

    `ids` [tokens, k] and `there` [tokens] in order of runs, `places` [segments, m]. A segment with
    a token that is not there counts nowhere.
    """
    length = places.shape[1]
    whole = there[places].all(axis=1)
    places = places[whole]
    of = np.repeat(np.arange(len(places)) * experts, length * ids.shape[1])
    key = of + ids[places.ravel()].ravel()
    uses = np.bincount(key, minlength=len(places) * experts)
    return np.bincount(uses, minlength=length + 1)[: length + 1]


def best_group(histogram: NDArray[np.int64], top_k: int) -> tuple[float, float]:
    """SRP and the mean size of its groups, from the `use_histogram` of segments."""
    length = len(histogram) - 1
    uses = np.arange(length + 1)
    asked = int((uses * histogram).sum())
    served = (uses * histogram)[::-1].cumsum()[::-1]
    taken = histogram[::-1].cumsum()[::-1] * length
    if not asked:
        return float("nan"), float("nan")
    f1 = 2 * served / (taken + asked)
    best = int(f1.argmax())
    return float(f1[best]), float(taken[best] / asked * top_k)
