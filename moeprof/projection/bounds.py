"""What no kernel can beat: the bytes a decode step must read, at the memory's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, Precision, load_precision, weight_bytes
from moeprof.quantity import Quantity

# Read whole by every step. The head is read too, from the embedding's table where it is tied; of
# the table itself a step reads one row a token, and of the vision tower nothing.
_READ_CLASSES = ("attention", "shared", "dense", "indexer", "router", "head", "norms")


def decode_read_bytes(
    model: MoEModel,
    precision: str | Mapping[str, str] | Precision,
    distinct_experts_per_layer: float | Sequence[float],
) -> Quantity:
    """Weight bytes that one decode step must read over all GPUs together, KV not included.

    `distinct_experts_per_layer` is how many different experts the step's tokens use in a MoE layer:
    one mean, or a sequence in the order of `model.moe_layers` (top_k for a single token). A tensor
    that ranks replicate counts once. Raises InputError where a number is not within 0 and the
    number of experts, or the sequence has another length.
    """
    loaded = load_precision(precision, model)
    sizes = weight_bytes(model, loaded)
    whole = sum(sizes[name] for name in _READ_CLASSES)
    if model.tied_embeddings:
        whole += sizes["embedding"]
    distinct = _distinct_in_all(model, distinct_experts_per_layer)
    experts = len(model.moe_layers) * model.experts
    routed = distinct * sizes["routed"] / experts if experts else 0
    return Quantity(
        whole + routed, "bytes", loaded.provenance, source=f"{loaded.source}; distinct experts"
    )


def decode_bound(
    model: MoEModel,
    cluster: Cluster | str,
    precision: str | Mapping[str, str] | Precision,
    distinct_experts_per_layer: float | Sequence[float],
) -> Quantity:
    """An upper bound of decode steps/s: peak bandwidth of all GPUs over the bytes to read.

    Not a projection: it counts weights alone, perfect balance, and no launch, collective or KV.
    Where the bandwidth is a range its upper end is used, so that the bound holds.
    """
    cluster = load_hardware(cluster)
    read = decode_read_bytes(model, precision, distinct_experts_per_layer)
    bandwidth = cluster.profile.memory_bandwidth
    peak = bandwidth.value if bandwidth.high is None else bandwidth.high
    return Quantity(
        cluster.gpus * peak / read.value,
        "steps/s",
        max(read.provenance, bandwidth.provenance, key=lambda provenance: provenance.rank),
        source=f"upper bound, bytes at peak bandwidth: {bandwidth.source}; {read.source}",
    )


def _distinct_in_all(model: MoEModel, distinct: float | Sequence[float]) -> float:
    layers = len(model.moe_layers)
    counts = [distinct] * layers if isinstance(distinct, int | float) else list(distinct)
    if len(counts) != layers:
        raise InputError(f"{len(counts)} distinct counts for the {layers} MoE layers")
    for count in counts:
        if not 0 <= count <= model.experts:  # also refuses NaN
            raise InputError(f"{count} distinct experts a layer, of {model.experts}")
    return sum(counts)
