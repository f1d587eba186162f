"""What is one observation: a request, or a stretch of one where requests are few."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Trace

FEWEST_REQUESTS = 8  # below which stretches of a request stand in
MOST = 4096  # clusters; more requests are taken together, neighbours in time
_STRETCH = 32  # tokens


class Clusters(NamedTuple):
    """Tokens that are not independent of each other, in order of their first token."""

    of: NDArray[np.int32]  # [tokens] cluster of each
    tokens: NDArray[np.int64]  # [clusters]
    first: NDArray[np.int64]  # [clusters] row of the first token
    unit: str  # what a cluster is

    @property
    def are_requests(self) -> bool:
        """Whether no cluster is a part of a request."""
        return self.unit != f"{_STRETCH} tokens of a request"


def find_clusters(trace: Trace) -> Clusters:
    """The requests of `trace`; stretches of them where there are fewer than FEWEST_REQUESTS."""
    codes, first, of = np.unique(trace.request, return_index=True, return_inverse=True)
    unit = "requests"
    if len(codes) < FEWEST_REQUESTS:
        order = np.argsort(of, kind="stable")
        begins = np.concatenate([[0], np.cumsum(np.bincount(of))[:-1]])
        place = np.empty(len(of), np.int64)
        place[order] = np.arange(len(of)) - begins[of[order]]
        stretch = place // _STRETCH * len(codes) + of
        _, first, of = np.unique(stretch, return_index=True, return_inverse=True)
        unit = f"{_STRETCH} tokens of a request"
    by_time = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[by_time] = np.arange(len(first))
    clusters = Clusters(rank[of].astype(np.int32), np.bincount(rank[of]), first[by_time], unit)
    if len(first) <= MOST:
        return clusters
    return _merged(clusters)


def blocks_of(clusters: Clusters, most: int) -> NDArray[np.int64]:
    """[blocks] first cluster of each of at most `most` blocks of about equal tokens."""
    if len(clusters.first) <= most:
        return np.arange(len(clusters.first))
    middle = np.cumsum(clusters.tokens) - clusters.tokens / 2
    block = (middle * most / clusters.tokens.sum()).astype(np.int64)
    return np.flatnonzero(np.diff(block, prepend=-1))


def _merged(clusters: Clusters) -> Clusters:
    starts = blocks_of(clusters, MOST)
    group = np.zeros(len(clusters.first), np.int32)
    group[starts[1:]] = 1
    group = np.cumsum(group).astype(np.int32)
    tokens = np.add.reduceat(clusters.tokens, starts)
    return Clusters(group[clusters.of], tokens, clusters.first[starts], "neighbouring requests")
