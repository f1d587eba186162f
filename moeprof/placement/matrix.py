"""Who sends to whom: bytes from the node where a token lives to those that hold its experts.

The model is that of `traffic`, but homes are known: requests are dealt to the GPUs in turn, in
order of arrival, as data-parallel attention keeps them. Only then can a node's matrix differ from
its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.placement.traffic import COMBINE_BYTES, DISPATCH_BYTES, tokens_to
from moeprof.result import Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class NodeTraffic(Result):
    """Bytes a token, there and back, over all layers, mean over the tokens of the home node."""

    bytes_per_token: list[list[float]]  # [home node][node of the experts]; the diagonal stays
    tokens: list[int]  # by home node
    nodes: int
    dispatch_bytes: float
    combine_bytes: float


def node_traffic(
    trace: Trace, placement: Placement, *, window: NDArray[np.bool_] | None = None
) -> NodeTraffic:
    """The matrix of `placement` for the tokens of `window` [tokens] (None: all) of `trace`.

    Raises InputError where a node has no request, TraceError on a damaged recording.
    """
    topology = placement.topology
    wanted = np.ones(trace.tokens, np.bool_) if window is None else window
    _, number = np.unique(trace.request[wanted], return_inverse=True)
    home = np.full(trace.tokens, -1)
    home[wanted] = topology.node_of_rank()[number % topology.gpus]
    node_of_slot = topology.node_of_rank()[topology.rank_of_slot()]
    size = trace.model.hidden_size * (DISPATCH_BYTES + COMBINE_BYTES)
    rows, counts = [], []
    for node in range(topology.nodes):
        here = home == node
        if not here.any():
            raise InputError(f"{trace}: has no request for node {node}: too few are recorded")
        sent, tokens = tokens_to(trace, placement, here, node_of_slot, topology.nodes)
        per_layer = sent / np.maximum(tokens, 1)[:, None]
        rows.append((size * per_layer.sum(axis=0)).tolist())
        counts.append(int(here.sum()))
    return NodeTraffic(rows, counts, topology.nodes, DISPATCH_BYTES, COMBINE_BYTES)
