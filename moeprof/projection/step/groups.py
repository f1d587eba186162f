"""Which groups a deployment belongs to, level by level."""

from __future__ import annotations

from moeprof.model import MoEModel, WeightFormat, weight_format
from moeprof.projection.deployment import Deployment

# The generation whose kernels a GPU runs; one that is not here has none of the measured ones.
_GENERATIONS = {
    "hopper": ("h100-sxm", "h100-pcie", "h200-sxm", "h20-sxm", "h800-sxm"),
    "blackwell": ("b200-sxm", "b300-sxm", "gb200-nvl72", "gb300-nvl72"),
    "cdna": ("mi300x", "mi325x", "mi350x", "mi355x"),
}
_MEASURED = {gpu: name for name, gpus in _GENERATIONS.items() for gpu in gpus}


def groups_of(deployment: Deployment) -> dict[str, str]:
    """Level -> group. A stack is an engine's kernels for a format on a generation of GPUs.

    Of no release where none is stated.
    """
    gpu = deployment.cluster.profile.name
    generation = _MEASURED.get(gpu, gpu)
    form = format_group(weights_format(deployment))
    stack = f"{deployment.engine}/{generation}/{form}"
    shape = shape_of(deployment.model)
    groups = {
        "generation": generation,
        "gpu": gpu,
        "engine": deployment.engine,
        "format": form,
        "attention": attention_group(deployment.model),
        "stack": stack,
        "model": shape,
        "served": f"{shape}/{stack}",
    }
    if deployment.release:
        groups["release"] = f"{shape}/{deployment.engine}/{form}/{deployment.release}"
    return groups


def weights_format(deployment: Deployment) -> WeightFormat:
    """The format of most weights: of the routed experts, or of a dense model's layers."""
    kind = "routed" if deployment.model.experts else "dense"
    return weight_format(deployment.precision.formats[kind])


def format_group(weights: WeightFormat) -> str:
    """bf16, fp8 and fp4 are computed as they are stored, int4 is unpacked to BF16 first."""
    if weights.family == "plain":
        return "bf16"
    if weights.name in ("fp8", "fp8_block", "mxfp8"):
        return "fp8"
    return "fp4" if weights.name in ("nvfp4", "mxfp4") else "int4"


def shape_of(model: MoEModel) -> str:
    """What tells models apart whose kernels differ; a model trained further is the same."""
    return f"{model.model_type}-{model.layers}x{model.hidden_size}x{model.experts}"


def attention_group(model: MoEModel) -> str:
    """The kind of attention kernels."""
    attention = model.attention
    if model.indexer is not None:
        return "indexed"
    if model.linear is not None:
        return "linear"
    if attention is not None and attention.latent_dim is not None:
        return "latent"
    return "windowed" if attention is not None and attention.sliding_layers else "grouped"
