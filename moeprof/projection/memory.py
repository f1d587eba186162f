"""Memory of one rank, class by class: does a deployment fit, and how many tokens of KV are left.

Infeasible is an answer here (`fits` is False), never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import TENSOR_CLASSES, MoEModel, Precision, load_precision
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Provenance, Quantity, total
from moeprof.result import Result

# https://docs.vllm.ai/en/stable/api/vllm/config/cache/: default of --gpu-memory-utilization (0.9
# in earlier releases), and DEFAULT_BLOCK_SIZE, the tokens of a KV block.
_VLLM_CACHE_CONFIG = "https://docs.vllm.ai/en/stable/api/vllm/config/cache/"
DEFAULT_UTILIZATION = 0.92
DEFAULT_BLOCK_TOKENS = 16

_SHARDING = "shared out as in https://docs.vllm.ai/en/latest/serving/expert_parallel_deployment/"
_KV_FORMULA = "https://github.com/SemiAnalysisAI/InferenceX/pull/2511 (KV and index key a token)"


@dataclass(frozen=True)
class MemoryLedger(Result):
    """Bytes on the fullest rank of a deployment.

    `classes` maps the tensor classes, then `kv` and `reserve`, to bytes, and `total` is their sum.
    `free_bytes` is capacity less total and negative where it does not fit. `max_kv_tokens` is how
    many tokens of KV one data-parallel group could hold in what weights and reserve leave, in whole
    blocks of `block_tokens`; 0 where the weights alone do not fit.
    """

    model: str
    hardware: str
    precision: str
    parallelism: Parallelism
    tokens: int
    block_tokens: int
    kv_bytes_per_token: int
    classes: Mapping[str, Quantity] = field(hash=False)
    total: Quantity
    capacity: Quantity
    fits: bool
    free_bytes: float
    max_kv_tokens: int

    @property
    def weights(self) -> Quantity:
        """Bytes of all tensor classes on the rank."""
        return total(self.classes[name] for name in TENSOR_CLASSES)


def project_memory(
    model: MoEModel,
    cluster: Cluster | str,
    *,
    precision: str | Mapping[str, str] | Precision = "bf16",
    tp: int = 1,
    ep: int = 1,
    dp: int = 1,
    kv_dtype: str = "bf16",
    index_dtype: str = "bf16",
    tokens: int = 0,
    utilization: float = DEFAULT_UTILIZATION,
    draft_kv_bytes_per_token: int = 0,
    language_model_only: bool = False,
) -> MemoryLedger:
    """The memory ledger of one rank, in bytes.

    `tokens` are the tokens of KV that one data-parallel group holds at a time, of all its requests
    together, and fill whole blocks. `utilization` is vLLM's `--gpu-memory-utilization`: the rest of
    the card is the reserve, and activations, CUDA graphs and communication buffers are assumed to
    live in it and in what the driver shows above the datasheet's capacity.
    `draft_kv_bytes_per_token` is what a speculative draft adds on a rank, and
    `language_model_only` leaves the vision tower out, as vLLM's flag does.

    See `Parallelism.rank_bytes` for what is sliced and what every rank holds. Raises InputError for
    values out of range and for ranks that the model or the cluster cannot have.
    """
    cluster = load_hardware(cluster)
    parallelism = Parallelism(tp=tp, ep=ep, dp=dp)
    parallelism.check_fits_shape(model, cluster.gpus)
    _check_range(tokens, utilization, draft_kv_bytes_per_token)
    loaded = load_precision(precision, model)

    capacity = cluster.profile.memory_bytes
    block_tokens = _block_tokens(model)
    per_token = model.kv_bytes_per_token_per_rank(tp, kv_dtype, index_dtype)
    per_token += draft_kv_bytes_per_token
    classes = _weights(model, loaded, parallelism, language_model_only)
    kv_tokens = ceil(tokens / block_tokens) * block_tokens
    classes["kv"] = _specified(kv_tokens * per_token, _KV_FORMULA)
    classes["reserve"] = _reserve(capacity, utilization)
    used = total(classes.values())
    left = capacity.value - used.value + classes["kv"].value
    return MemoryLedger(
        model=model.name,
        hardware=cluster.name,
        precision=loaded.name,
        parallelism=parallelism,
        tokens=tokens,
        block_tokens=block_tokens,
        kv_bytes_per_token=per_token,
        classes=classes,
        total=used,
        capacity=capacity,
        fits=used.value <= capacity.value,
        free_bytes=capacity.value - used.value,
        max_kv_tokens=max(0, int(left // (per_token * block_tokens))) * block_tokens,
    )


def _weights(
    model: MoEModel, precision: Precision, parallelism: Parallelism, language_model_only: bool
) -> dict[str, Quantity]:
    sizes = dict.fromkeys(TENSOR_CLASSES, 0)
    for group in model.counted_tensors():
        if not (language_model_only and group.tensor_class == "vision"):
            whole = precision.group_bytes(group)
            sizes[group.tensor_class] += parallelism.rank_bytes(model, group, whole)
    source = f"{precision.source}; {_SHARDING}"
    return {
        name: Quantity(size, "bytes", precision.provenance, source=source)
        for name, size in sizes.items()
    }


def _specified(size: int, source: str) -> Quantity:
    return Quantity(size, "bytes", Provenance.SPECIFIED, source=source)


def _reserve(capacity: Quantity, utilization: float) -> Quantity:
    source = f"1 - gpu_memory_utilization {utilization:g} of the card, {_VLLM_CACHE_CONFIG}"
    size = capacity.value - capacity.value * utilization
    return Quantity(size, "bytes", Provenance.ASSUMED, source=source)


def _block_tokens(model: MoEModel) -> int:
    """An indexer scores whole blocks, so KV is paged in its block size (128 for MiniMax-M3)."""
    if model.indexer is not None and model.indexer.block_size is not None:
        return model.indexer.block_size
    return DEFAULT_BLOCK_TOKENS


def _check_range(tokens: int, utilization: float, draft_kv_bytes_per_token: int) -> None:
    if not isinstance(tokens, int) or tokens < 0:
        raise InputError(f"tokens must be a whole number of at least 0, not {tokens!r}")
    if not isinstance(draft_kv_bytes_per_token, int) or draft_kv_bytes_per_token < 0:
        raise InputError(
            f"draft_kv_bytes_per_token must be at least 0, not {draft_kv_bytes_per_token!r}"
        )
    if not 0 < utilization <= 1:  # also refuses NaN
        raise InputError(f"utilization must lie above 0 and at most 1, not {utilization!r}")
