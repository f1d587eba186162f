"""Which checkpoints of a model an engine runs on a GPU, and how it keeps its cache there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware import HardwareProfile
from moeprof.model import (
    MoEModel,
    Precision,
    WeightFormat,
    load_precision,
    precision_names,
    weight_format,
)
from moeprof.projection.advice.engine_facts import engine_facts

# Where no checkpoint of a model that the engine reads is described: the usual ones, laid out by
# habit and so assumed.
_USUAL = ("bf16", "fp8", "nvfp4", "q8_0", "q6_k", "q4_k", "q3_k", "q2_k", "mlx8", "mlx6", "mlx4")
_NARROW_KV_ENGINES = ("vllm", "sglang", "trtllm")


def runnable_precisions(model: MoEModel, gpu: HardwareProfile, engine: str) -> list[str]:
    """Names of the checkpoints of `model` that `engine` runs on `gpu`.

    Of several in one format of the experts the first that is published stands for all; another
    one is tried where it is named.
    """
    found: dict[str, str] = {}
    families = engine_facts(engine)["families"]
    formats = {name: _format(name, model) for name in precision_names(model)}
    if not any(weights.family in families for weights in formats.values()):
        formats = {name: _format(name, model) for name in _USUAL}
    for name, weights in formats.items():
        if can_run(weights, gpu, engine, model):
            found.setdefault(_variety(name, weights), name)
    return list(found.values())


def check_precision(
    precision: Precision, model: MoEModel, gpu: HardwareProfile, engine: str
) -> None:
    """Raises InputError where `engine` has no kernels for it on `gpu`."""
    weights = most_weights(precision, model)
    if not can_run(weights, gpu, engine, model):
        raise InputError(
            f"{engine} does not run {model.name} with {weights.name} weights on {gpu.name}"
        )


def can_run(weights: WeightFormat, gpu: HardwareProfile, engine: str, model: MoEModel) -> bool:
    """Whether `engine` reads `weights` of `model` and `gpu` has what its kernels ask for."""
    facts = engine_facts(engine)
    named = facts.get("models", {}).get(model.model_type)
    if named is not None and weights.name not in named:
        return False
    if weights.family not in facts["families"] or weights.name in facts.get("without", ()):
        return False
    return any(_has(gpu, need) for need in _needs(facts, weights.name))


def most_weights(precision: Precision, model: MoEModel) -> WeightFormat:
    """The format of most weights: of routed experts, or of a dense model's layers."""
    return weight_format(precision.formats["routed" if model.experts else "dense"])


def usual_kv_dtype(weights: WeightFormat, gpu: HardwareProfile, engine: str) -> str:
    """FP8 where the weights are quantized and engine and GPU have it, as recipes set it."""
    narrow = weights.family != "plain" and engine in _NARROW_KV_ENGINES
    return "fp8" if narrow and "dense_tflops_fp8" in gpu.figures else "bf16"


def _format(name: str, model: MoEModel) -> WeightFormat:
    return most_weights(load_precision(name, model), model)


def _variety(name: str, weights: WeightFormat) -> str:
    """GGUF and MLX checkpoints differ by their mix, others by the format of the experts."""
    return name if weights.family in ("gguf", "mlx") else weights.name


def _needs(facts: Mapping[str, Any], weights: str) -> list[Mapping[str, str]]:
    """Any of these is enough; a format that is not named needs nothing."""
    needs: list[Mapping[str, str]] = facts.get("needs", {}).get(weights, [{}])
    return needs


def _has(gpu: HardwareProfile, need: Mapping[str, str]) -> bool:
    vendor, figure = need.get("vendor"), need.get("figure")
    return vendor in (None, gpu.vendor) and (figure is None or figure in gpu.figures)
