"""From model, cluster and split to the memory ledger of the fullest rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import ceil

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, Precision, load_precision
from moeprof.projection.memory.drafts import Draft, load_draft
from moeprof.projection.memory.engines import engine_memory
from moeprof.projection.memory.experts import ExpertSlots, host_bytes
from moeprof.projection.memory.ledger import MemoryLedger, StageMemory
from moeprof.projection.memory.sequence_cache import sliding_layers
from moeprof.projection.memory.stage_ledger import StageLedger, StagePlan
from moeprof.projection.memory.stages import stage_models
from moeprof.projection.memory.weights import PREDICTION
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Provenance, Quantity


def project_memory(
    model: MoEModel,
    cluster: Cluster | str,
    *,
    precision: str | Mapping[str, str] | Precision = "bf16",
    tp: int = 1,
    ep: int = 1,
    dp: int = 1,
    pp: int = 1,
    stage_layers: Sequence[int] | None = None,
    pad_heads: bool = False,
    kv_dtype: str = "bf16",
    index_dtype: str = "bf16",
    tokens: int = 0,
    sequences: int = 1,
    engine: str = "vllm",
    utilization: float | None = None,
    activation_bytes: int | None = None,
    max_num_batched_tokens: int | None = None,
    encoder_profile: bool = False,
    redundant: int = 0,
    cache_slots: int | None = None,
    ram_bytes: int | None = None,
    mtp: bool = False,
    draft: str | Draft | None = None,
    draft_kv_bytes_per_token: int = 0,
    language_model_only: bool = False,
    mm_encoder_tp_mode: str = "weights",
) -> MemoryLedger:
    """The memory ledger of the fullest rank, in bytes.

    `tokens` are the tokens of KV that one data-parallel group holds at a time, of its `sequences`
    together, each as long as the others and in whole blocks. `stage_layers` is how many layers
    each of the `pp` stages has; `pad_heads` allows a `tp` that does not divide the heads.

    `engine` (`engine_names()`) decides what is kept beside weights and KV, all of it assumed;
    `utilization` replaces its share (vLLM's `--gpu-memory-utilization`, SGLang's
    `--mem-fraction-static`, TensorRT-LLM's `free_gpu_memory_fraction`), `max_num_batched_tokens`
    the tokens of its largest step, and `activation_bytes` its activations, where a log states them.
    `encoder_profile` counts the longest video, which vLLM tries at start-up unless videos are
    limited (`--limit-mm-per-prompt`, `--language-model-only`).

    `redundant` slots a layer hold experts a second time, shared out over `ep`. With `cache_slots`
    GPUs hold so many experts of each layer and the host the others; `ram_bytes` is its memory on
    each node, that of the host in `cluster` if None. `mtp` loads the model's modules for
    multi-token prediction, `draft` a draft model (`draft_names(model)`), and
    `draft_kv_bytes_per_token` is what another draft adds on a rank. `language_model_only` leaves
    the vision tower out and `mm_encoder_tp_mode` "data" puts it whole on every rank, as vLLM's
    flags do.

    See `Parallelism.rank_bytes` for what is sliced and what every rank holds, and `stage_models`
    for what stands on which stage. Raises InputError for values out of range and for ranks that the
    model or the cluster cannot have.
    """
    cluster = load_hardware(cluster)
    split = Parallelism(tp=tp, ep=ep, dp=dp, pp=pp)
    split.check_fits_shape(model, cluster.gpus, pad_heads)
    slots = ExpertSlots(redundant, cache_slots)
    slots.check(model, split, cluster)
    _check_range(tokens, sequences, utilization)
    _check_bytes(
        draft_kv_bytes_per_token=draft_kv_bytes_per_token,
        activation_bytes=activation_bytes,
        ram_bytes=ram_bytes,
    )
    if max_num_batched_tokens is not None:
        _check_count("max_num_batched_tokens", max_num_batched_tokens, 1)
    if mtp and not model.prediction_tensors:
        raise InputError(f"{model.name} has no modules for multi-token prediction")
    if mm_encoder_tp_mode not in ("weights", "data"):
        raise InputError(f"mm_encoder_tp_mode is weights or data, not {mm_encoder_tp_mode!r}")
    capacity = cluster.profile.memory_visible
    absent = {PREDICTION: not mtp, "vision": language_model_only}
    plan = StagePlan(
        precision=load_precision(precision, model),
        split=split,
        slots=slots,
        draft=None if draft is None else load_draft(draft, model),
        engine=engine_memory(
            engine,
            capacity.value,
            split,
            step_tokens=max_num_batched_tokens,
            drafts=mtp or draft is not None,
        ),
        capacity=capacity,
        utilization=utilization,
        activation_bytes=activation_bytes,
        encoder_profile=encoder_profile,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        extra_kv_bytes=draft_kv_bytes_per_token,
        absent=tuple(name for name in absent if absent[name]),
        whole=("vision",) if mm_encoder_tp_mode == "data" else (),
    )
    models = stage_models(model, pp, stage_layers)
    length = ceil(tokens / sequences)
    stages = [
        plan.ledger(stage, order == pp - 1, sequences, length) for order, stage in enumerate(models)
    ]
    host = host_bytes(models, plan.precision, split, slots, cluster.gpus_per_node)
    return _gather(model, cluster, plan, stages, host, ram_bytes, tokens)


def _gather(
    model: MoEModel,
    cluster: Cluster,
    plan: StagePlan,
    stages: list[StageLedger],
    host: Quantity,
    ram_bytes: int | None,
    tokens: int,
) -> MemoryLedger:
    """The ledger of the fullest stage, with what fits on all of them."""
    order = min(range(len(stages)), key=lambda i: stages[i].free)
    fullest = stages[order]
    room = _host_capacity(cluster, ram_bytes)
    host_fits = room is None or host.value <= room.value
    return MemoryLedger(
        model=model.name,
        hardware=cluster.name,
        precision=plan.precision.name,
        engine=plan.engine.name,
        draft=plan.draft.name if plan.draft else None,
        parallelism=plan.split,
        redundant=plan.slots.redundant,
        cache_slots=plan.slots.cache_slots,
        tokens=tokens,
        sequences=fullest.sequences,
        block_tokens=fullest.cache.block_tokens,
        sliding_layers=sliding_layers(model),
        kv_bytes_per_token=fullest.cache.bytes_per_token,
        kv_copies=fullest.cache.copies,
        state_bytes_per_sequence=fullest.cache.state_bytes,
        classes=fullest.classes,
        left_out=_left_out(stages, fullest),
        stage=order,
        stages=_stage_memories(stages),
        total=fullest.total,
        capacity=plan.capacity,
        host=host,
        host_capacity=room,
        fits=fullest.free >= 0 and host_fits,
        free_bytes=fullest.free,
        max_kv_tokens=_least(stage.max_kv_tokens for stage in stages) or 0,
        max_sequences=_least(stage.max_sequences for stage in stages) if tokens else None,
        max_context=min(stage.max_context(model.max_positions) for stage in stages),
        max_cache_slots=_least(stage.max_cache_slots for stage in stages),
    )


def _left_out(stages: list[StageLedger], fullest: StageLedger) -> Mapping[str, Quantity]:
    """Of the fullest rank, and of the others what it does not have at all."""
    others = {name: size for stage in stages for name, size in stage.left_out.items()}
    return {**others, **fullest.left_out}


def _stage_memories(stages: list[StageLedger]) -> tuple[StageMemory, ...]:
    starts = accumulate((stage.model.layers for stage in stages), initial=0)
    return tuple(
        StageMemory(
            first_layer=first,
            layers=stage.model.layers,
            weights_bytes=stage.weights.value,
            kv_bytes=stage.classes["kv"].value,
            total_bytes=stage.total.value,
        )
        for first, stage in zip(starts, stages, strict=False)
    )


def _host_capacity(cluster: Cluster, ram_bytes: int | None) -> Quantity | None:
    """Host memory of a node: as stated, or the most that the named host takes."""
    if ram_bytes is not None:
        return Quantity(ram_bytes, "bytes", Provenance.SPECIFIED, source="given by the caller")
    if cluster.host is None or "memory_max_bytes" not in cluster.host.figures:
        return None
    return cluster.host.figure("memory_max_bytes")


def _least(limits: Iterable[int | None]) -> int | None:
    """The least of those limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)


def _check_range(tokens: int, sequences: int, utilization: float | None) -> None:
    _check_count("tokens", tokens, 0)
    _check_count("sequences", sequences, 1)
    if utilization is not None and not 0 < utilization <= 1:  # also refuses NaN
        raise InputError(f"utilization must lie above 0 and at most 1, not {utilization!r}")


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_bytes(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < 0):
            raise InputError(f"{name} must be a whole number of bytes from 0 on, not {size!r}")
