"""What one assignment more on the busiest rank costs in time: its matrix products, at peak.

    seconds = 2 x weights of an expert / dense FLOP/s of the GPU

It is the least that waiting can cost, and what large batches come to. Small batches of decode wait
for weights to be read, whether one token uses an expert or ten do: there it costs nothing.
"""

from __future__ import annotations

from moeprof.hardware import Cluster
from moeprof.model import MoEModel
from moeprof.quantity import Provenance, Quantity


def assignment_seconds(model: MoEModel, cluster: Cluster, precision: str = "bf16") -> Quantity:
    """Seconds an assignment, computed in the type that `precision` is multiplied in.

    Assumed, for it takes steps to be bound by computation. Raises InputError where the GPU's peak
    in that type is not known, ModelError where the model's tensors are not.
    """
    dtype = _compute_type(precision)
    peak = cluster.profile.dense_tflops(dtype)
    flops = 2 * model.expert_parameters
    return Quantity(
        flops / (peak.value * 1e12),
        "s",
        Provenance.ASSUMED,
        source=f"{flops:.3g} FLOP at the dense {dtype} peak of {cluster.profile.name}, "
        f"{peak.value:g} TFLOP/s ({peak.provenance.value})",
    )


def _compute_type(precision: str) -> str:
    """The type of the matrix products; formats of 4 bits with scales run as FP4, the rest BF16."""
    if precision in ("nvfp4", "mxfp4"):
        return "fp4"
    return "fp8" if precision.startswith(("fp8", "mxfp8")) else "bf16"
