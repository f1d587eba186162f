"""Bytes of weights on the fullest rank: what a deployment loads, and what it leaves out."""

from __future__ import annotations

from collections.abc import Collection
from math import ceil

from moeprof.model import TENSOR_CLASSES, MoEModel, Precision, weight_format
from moeprof.projection.memory.experts import ExpertSlots, slot_bytes
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Provenance, Quantity, total

# The modules for multi-token prediction, all their classes together. Where a checkpoint repeats
# embedding and head for them, vLLM ("Sharing target model embedding weights with the draft model",
# vllm/v1/spec_decode) and SGLang use those of the model.
PREDICTION = "prediction"
_SHARED_WITH_MODEL = ("embedding", "head")
LOADED_CLASSES = (*TENSOR_CLASSES, PREDICTION)
REDUNDANT = "redundant"

_SHARDING = "shared out as in https://docs.vllm.ai/en/latest/serving/expert_parallel_deployment/"
# Multiples that Marlin's MoE kernel wants; those of Blackwell want as much or more.
_WIDTH, _HIDDEN = 128, 256
_PADDING = (
    "width of a slice padded to a multiple of 128, hidden size to one of 256: https://github.com/"
    "vllm-project/vllm vllm/model_executor/layers/quantization/mxfp4.py; reproduces the 65.97 GiB "
    "of gpt-oss-120b in https://github.com/vllm-project/vllm/issues/23278"
)
_ABSORBED = (
    "kv_b_proj a second time, in BF16, for attention over the latent vectors themselves: W_UK_T "
    "and W_UV of MLA in https://github.com/vllm-project/vllm; with it the ledger reproduces the "
    "79.74 GiB of DeepSeek-R1 at TP8 that vLLM 0.11.2 logs"
)


def rank_weights(
    model: MoEModel,
    precision: Precision,
    parallelism: Parallelism,
    slots: ExpertSlots,
    whole_classes: Collection[str] = (),
) -> dict[str, Quantity]:
    """Bytes on the fullest rank by class: `LOADED_CLASSES`, of all that the checkpoint has and
    `slots` leave on GPUs, and second copies of experts. `whole_classes` stand on every rank."""
    sizes = dict.fromkeys((*LOADED_CLASSES, REDUNDANT), 0)
    for group in model.counted_tensors():
        if group.tensor_class != "routed":
            size = precision.group_bytes(group)
            if group.tensor_class not in whole_classes:
                size = parallelism.rank_bytes(model, group, size)
            sizes[group.tensor_class] += size
    resident, doubled = (rule(model, parallelism) for rule in (slots.resident, slots.doubled))
    sizes["routed"] = slot_bytes(model, precision, parallelism, resident)
    sizes[REDUNDANT] = slot_bytes(model, precision, parallelism, doubled)
    for group in model.prediction_tensors:
        if group.tensor_class in _SHARED_WITH_MODEL:
            continue
        whole = precision.group_bytes(group)
        sizes[PREDICTION] += parallelism.rank_bytes(model, group, whole)
    source = f"{precision.source}; {_SHARDING}"
    return {
        name: Quantity(size, "bytes", precision.provenance, source=source)
        for name, size in sizes.items()
    }


def split_loaded(
    weights: dict[str, Quantity], absent: Collection[str]
) -> tuple[dict[str, Quantity], dict[str, Quantity]]:
    """(loaded, left out): the classes in `absent` weigh nothing, and stand in the second."""
    nothing = {
        name: Quantity(0, "bytes", size.provenance, source=size.source)
        for name, size in weights.items()
        if name in absent
    }
    return weights | nothing, {name: weights[name] for name in nothing if weights[name].value}


def engine_bytes(
    model: MoEModel, precision: Precision, parallelism: Parallelism, slots: ExpertSlots
) -> Quantity:
    """What engines hold beside the checkpoint's bytes for their kernels' sake; from nothing up."""
    held = slots.resident(model, parallelism) + slots.doubled(model, parallelism)
    added = [
        _padding(model, precision, parallelism, held),
        _absorbed(model, precision, parallelism),
    ]
    return total([part for part in added if part.value] or added)


def _absorbed(model: MoEModel, precision: Precision, parallelism: Parallelism) -> Quantity:
    """A copy of latent attention's way up where it is quantized; views of it where it is not."""
    size = sum(
        parallelism.rank_bytes(model, group, 2 * group.parameters)
        for group in model.counted_tensors()
        if group.name == "kv_b_proj" and precision.format_of(group).family != "plain"
    )
    return Quantity(size, "bytes", Provenance.ASSUMED, 0, size, _ABSORBED)


def _padding(
    model: MoEModel, precision: Precision, parallelism: Parallelism, held: int
) -> Quantity:
    """What makes the sides of MXFP4 experts multiples that kernels can read."""
    mxfp4, hidden = weight_format("mxfp4"), model.hidden_size
    matrices = sum(
        group.count
        for group in model.counted_tensors()
        if group.tensor_class == "routed" and precision.format_of(group) is mxfp4
    )
    width = ceil(model.expert_intermediate_size / parallelism.moe_tp)
    padded = mxfp4.tensor_bytes((_up_to(width, _WIDTH), _up_to(hidden, _HIDDEN)))
    each = padded - mxfp4.tensor_bytes((width, hidden))
    size = each * matrices * held // model.experts if matrices else 0
    return Quantity(size, "bytes", Provenance.ASSUMED, 0, size, _PADDING)


def _up_to(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple
