"""Bytes that tokens move between GPUs and nodes under a placement.

The model is that of deduplicated all-to-all, as DeepEP does it: a token's hidden state is sent once
to every GPU that holds one of its experts, not once an expert, and one partial result comes back
from each. Attention is data parallel: a token's home is any of the G GPUs alike, and what stays at
home is not sent. A replica is chosen at random, whatever the home, as an equal share means. With
h[l, g] the share of tokens that layer l sends to GPU g,

    bytes a token = hidden_size * (dispatch + combine bytes an element)
                    * (1 - 1/G) * sum over l and g of h[l, g]

and alike for nodes, of which each is sent to once. Scales beside the elements are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import refuse_foreign_ids
from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.quantity import Provenance
from moeprof.result import NOT_JSON, Result
from moeprof.threads import map_threads
from moeprof.trace import Trace

# What DeepEP's kernels send by default: dispatch in FP8, combine in BF16
# (README of github.com/deepseek-ai/DeepEP).
DISPATCH_BYTES = 1.0
COMBINE_BYTES = 2.0


@dataclass(frozen=True)
class Traffic(Result):
    """What one token sends and gets back, over all layers, mean over tokens."""

    bytes_between_gpus_per_token: float
    bytes_between_nodes_per_token: float
    gpus_per_token: float  # that hold its experts, home or not, mean over layers
    nodes_per_token: float
    hidden_size: int
    dispatch_bytes: float  # of an element
    combine_bytes: float
    provenance: Provenance  # of the bytes: the routing is measured, the all-to-all assumed
    tokens: int
    tokens_to_gpu: NDArray[np.float64] = field(repr=False, metadata=NOT_JSON)  # [layers, gpus]


def measure_traffic(
    trace: Trace,
    placement: Placement,
    *,
    window: NDArray[np.bool_] | None = None,
    dispatch_bytes: float = DISPATCH_BYTES,
    combine_bytes: float = COMBINE_BYTES,
) -> Traffic:
    """The traffic of the tokens of `window` [tokens] (None: all) of `trace` under `placement`.

    Raises InputError where the placement is of another model or no token is left, TraceError where
    the recording is damaged or holds counts alone.
    """
    shape = (len(trace.layers), trace.experts_per_layer)
    if shape != (placement.layers, placement.experts):
        raise InputError(
            f"{trace}: {shape[0]} layers of {shape[1]} experts were recorded, the placement is of "
            f"{placement.layers} layers of {placement.experts}"
        )
    if not all(0 <= size < np.inf for size in (dispatch_bytes, combine_bytes)):
        raise InputError(
            f"an element of {dispatch_bytes} and {combine_bytes} bytes: give 0 or more"
        )
    wanted = np.ones(trace.tokens, np.bool_) if window is None else window
    topology = placement.topology
    to_gpu, tokens = tokens_to(trace, placement, wanted, topology.rank_of_slot(), topology.gpus)
    node_of_slot = topology.node_of_rank()[topology.rank_of_slot()]
    to_node, _ = tokens_to(trace, placement, wanted, node_of_slot, topology.nodes)
    if not tokens.all():
        raise InputError(f"{trace}: no token of the window has every layer: take a longer one")
    gpus, nodes = (sent.sum(axis=1) / tokens for sent in (to_gpu, to_node))
    size = trace.model.hidden_size * (dispatch_bytes + combine_bytes)
    return Traffic(
        bytes_between_gpus_per_token=size * (1 - 1 / topology.gpus) * float(gpus.sum()),
        bytes_between_nodes_per_token=size * (1 - 1 / topology.nodes) * float(nodes.sum()),
        gpus_per_token=float(gpus.mean()),
        nodes_per_token=float(nodes.mean()),
        hidden_size=trace.model.hidden_size,
        dispatch_bytes=dispatch_bytes,
        combine_bytes=combine_bytes,
        provenance=Provenance.ASSUMED,
        tokens=int(tokens.max()),
        tokens_to_gpu=to_gpu,
    )


def tokens_to(
    trace: Trace,
    placement: Placement,
    wanted: NDArray[np.bool_],
    place_of_slot: NDArray[np.int64],
    places: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[layers, places] tokens that reach each place, and [layers] tokens in all."""
    from moeprof.placement.kernels import touched

    sent = np.zeros((placement.layers, places))
    tokens = np.zeros(placement.layers, np.int64)

    def count(row: int) -> None:
        use = replica_chances(placement, row, place_of_slot, places)
        foreign = 0
        for part in trace.batches(trace.layers[row]):
            rows = wanted[part.start : part.start + len(part.experts)]
            if part.recorded is not None:
                rows = rows & part.recorded
            tokens[row] += np.count_nonzero(rows)
            foreign += touched(part.experts, *use, rows, sent[row])
        refuse_foreign_ids(trace, trace.layers[row], foreign)

    map_threads(count, range(placement.layers))
    return sent, tokens


def replica_chances(
    placement: Placement, row: int, place_of_slot: NDArray[np.int64], places: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Where each expert of a layer is used, and with what chance.

    Expert e: places[first[e]:first[e + 1]], each place once, and the chances beside them. Returns
    first [experts + 1], places and chances.
    """
    copies = np.zeros((placement.experts, places), np.int64)
    np.add.at(copies, (placement.physical_to_logical_map[row], place_of_slot), 1)
    expert, place = np.nonzero(copies)
    first = np.searchsorted(expert, np.arange(placement.experts + 1))
    return first, place, copies[expert, place] / placement.logical_replica_count[row, expert]
