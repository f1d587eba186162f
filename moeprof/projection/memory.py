"""Memory of one rank, class by class: does a deployment fit, and how many tokens of KV are left.

Infeasible is an answer here (`fits` is False), never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, Precision, load_precision
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.sequence_cache import (
    STATE_SOURCE,
    SequenceCache,
    prediction_kv_bytes,
    sliding_layers,
)
from moeprof.projection.weights import (
    LOADED_CLASSES,
    PREDICTION,
    engine_bytes,
    rank_weights,
    split_loaded,
)
from moeprof.quantity import Provenance, Quantity, total
from moeprof.result import Result

# https://docs.vllm.ai/en/stable/api/vllm/config/cache/: default of --gpu-memory-utilization (0.9
# in earlier releases).
_VLLM_CACHE_CONFIG = "https://docs.vllm.ai/en/stable/api/vllm/config/cache/"
DEFAULT_UTILIZATION = 0.92


@dataclass(frozen=True)
class MemoryLedger(Result):
    """Bytes on the fullest rank of a deployment.

    `classes` maps the tensor classes to bytes, then `prediction` (modules for multi-token
    prediction, where they are loaded), `engine` (what an engine holds beside for its kernels'
    sake), `kv`, `state` (linear attention, a state a running sequence) and `reserve`; `total` is
    their sum. `left_out` holds what the checkpoint has and this deployment does not load.
    `kv_copies` is on how many tensor-parallel ranks the same keys and values stand.

    `free_bytes` is capacity less total and negative where it does not fit. `max_kv_tokens` is how
    many tokens of KV one data-parallel group could hold beside weights, states and reserve, in
    whole blocks of `block_tokens`, every layer keeping every token: with `sliding_layers` it is a
    lower bound. `max_sequences` is how many sequences of the length asked for it could hold, with
    their states and the windows as they are; None where no length was asked for.
    """

    model: str
    hardware: str
    precision: str
    parallelism: Parallelism
    tokens: int
    sequences: int
    block_tokens: int
    sliding_layers: int
    kv_bytes_per_token: int
    kv_copies: int
    state_bytes_per_sequence: int
    classes: Mapping[str, Quantity] = field(hash=False)
    left_out: Mapping[str, Quantity] = field(hash=False)
    total: Quantity
    capacity: Quantity
    fits: bool
    free_bytes: float
    max_kv_tokens: int
    max_sequences: int | None

    @property
    def weights(self) -> Quantity:
        """Bytes of all loaded tensors on the rank, as the checkpoint stores them."""
        return total(self.classes[name] for name in LOADED_CLASSES)


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
    sequences: int = 1,
    utilization: float = DEFAULT_UTILIZATION,
    mtp: bool = False,
    draft_kv_bytes_per_token: int = 0,
    language_model_only: bool = False,
) -> MemoryLedger:
    """The memory ledger of one rank, in bytes.

    `tokens` are the tokens of KV that one data-parallel group holds at a time, of its `sequences`
    together, each as long as the others and in whole blocks. `utilization` is vLLM's
    `--gpu-memory-utilization`: the rest of the card is the reserve, and activations, CUDA graphs
    and communication buffers are assumed to live in it and in what the driver shows above the
    datasheet's capacity.
    `mtp` loads the model's modules for multi-token prediction, which only speculation needs, and
    `draft_kv_bytes_per_token` is what another speculative draft adds on a rank.
    `language_model_only` leaves the vision tower out, as vLLM's flag does.

    See `Parallelism.rank_bytes` for what is sliced and what every rank holds. Raises InputError for
    values out of range and for ranks that the model or the cluster cannot have.
    """
    cluster = load_hardware(cluster)
    parallelism = Parallelism(tp=tp, ep=ep, dp=dp)
    parallelism.check_fits_shape(model, cluster.gpus)
    _check_range(tokens, sequences, utilization, draft_kv_bytes_per_token)
    loaded, draft = load_precision(precision, model), draft_kv_bytes_per_token
    if mtp:
        if not model.prediction_tensors:
            raise InputError(f"{model.name} has no modules for multi-token prediction")
        draft += prediction_kv_bytes(model, tp, kv_dtype, index_dtype)
    cache = SequenceCache(model, tp, kv_dtype, index_dtype, draft)

    absent = {PREDICTION: not mtp, "vision": language_model_only}
    classes, left_out = split_loaded(
        rank_weights(model, loaded, parallelism), [name for name in absent if absent[name]]
    )
    classes["engine"] = engine_bytes(model, loaded, parallelism)
    kv = cache.kv_bytes(ceil(tokens / sequences))
    classes["kv"] = _specified(sequences * kv, cache.source)
    classes["state"] = _specified(sequences * cache.state_bytes, STATE_SOURCE)
    capacity = cluster.profile.memory_bytes
    classes["reserve"] = _reserve(capacity, utilization)
    used = total(classes.values())
    free = capacity.value - used.value
    for_kv = free + classes["kv"].value
    each = kv + cache.state_bytes
    return MemoryLedger(
        model=model.name,
        hardware=cluster.name,
        precision=loaded.name,
        parallelism=parallelism,
        tokens=tokens,
        sequences=sequences,
        block_tokens=cache.block_tokens,
        sliding_layers=sliding_layers(model),
        kv_bytes_per_token=cache.bytes_per_token,
        kv_copies=cache.copies,
        state_bytes_per_sequence=cache.state_bytes,
        classes=classes,
        left_out=left_out,
        total=used,
        capacity=capacity,
        fits=free >= 0,
        free_bytes=free,
        max_kv_tokens=_times(for_kv, cache.block_bytes) * cache.block_tokens,
        max_sequences=_times(free + sequences * each, each) if tokens else None,
    )


def _times(room: float, size: int) -> int:
    """How often `size` fits into `room`, which may be negative."""
    return max(0, int(room // size))


def _specified(size: int, source: str) -> Quantity:
    return Quantity(size, "bytes", Provenance.SPECIFIED, source=source)


def _reserve(capacity: Quantity, utilization: float) -> Quantity:
    source = f"1 - gpu_memory_utilization {utilization:g} of the card, {_VLLM_CACHE_CONFIG}"
    size = capacity.value - capacity.value * utilization
    return Quantity(size, "bytes", Provenance.ASSUMED, source=source)


def _check_range(
    tokens: int, sequences: int, utilization: float, draft_kv_bytes_per_token: int
) -> None:
    for name, value, least in (("tokens", tokens, 0), ("sequences", sequences, 1)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if not isinstance(draft_kv_bytes_per_token, int) or draft_kv_bytes_per_token < 0:
        raise InputError(
            f"draft_kv_bytes_per_token must be at least 0, not {draft_kv_bytes_per_token!r}"
        )
    if not 0 < utilization <= 1:  # also refuses NaN
        raise InputError(f"utilization must lie above 0 and at most 1, not {utilization!r}")
