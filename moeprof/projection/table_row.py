"""One row of a table of deployments, in the columns of published serving benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from math import ceil

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import (
    MoEModel,
    Precision,
    load_model,
    load_precision,
    precision_names,
    weight_format,
)
from moeprof.projection.closed_loop import Traffic, check_traffic
from moeprof.projection.deployment import DEFAULT_ENGINE, Deployment, plan_deployment
from moeprof.projection.holding import deployment_ledger

# What tables call a precision, and the checkpoints meant: the one that is published for the model,
# or the last.
_CHECKPOINTS = {
    "fp8": ("mxfp8", "fp8_block", "fp8"),
    "fp4": ("mxfp4", "nvfp4"),
    "int4": ("int4", "int4_awq"),
}
# Drafts that propose no more than they are confident of, up to the k that is set.
_STOPS_BY_ITSELF = ("dspark",)
_ENGINES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "trt": "trtllm", "llama.cpp": "llamacpp"}


def row_deployment(row: Mapping[str, str]) -> Deployment:
    """The deployment of `row`.

    Reads model, hardware, engine, engine_version, precision, kv_dtype, tp, dp and moe_ep;
    `hardware` may be a single GPU's name, of which tp x dp stand. Without kv_dtype the KV cache is
    FP8 where the weights are quantized, as the recipes of published runs set it, and BF16
    elsewhere. Raises InputError naming the column.
    """
    model = _model(_word(row, "model"))
    precision = load_precision(_checkpoint(model, _word(row, "precision")), model)
    tp, dp, ep = (_count(row, name, 1) for name in ("tp", "dp", "moe_ep"))
    engine = (row.get("engine") or DEFAULT_ENGINE).strip().lower()
    return plan_deployment(
        model,
        _cluster(_word(row, "hardware"), tp * dp),
        precision=precision,
        tp=tp,
        ep=ep,
        dp=dp,
        engine=_ENGINES.get(engine, engine),
        release=row.get("engine_version") or None,
        pad_heads=True,  # it was served, so the engine found a way
        kv_dtype=(row.get("kv_dtype") or "").strip() or _usual_kv_dtype(model, precision),
    )


def row_traffic(row: Mapping[str, str]) -> Traffic:
    """The load of `row`: concurrency (of one data-parallel group), input_len and output_len.

    Published tables count concurrency by group: that of all is dp times it. Beside them, where the
    row has them: cached_len (prompt tokens in the cache), draft_tokens (or k=N in draft) and
    acceptance_len of speculative decoding. Raises InputError by column.
    """
    accepted = _accepted(row)
    traffic = Traffic(
        concurrency=_count(row, "concurrency") * _count(row, "dp", 1),
        input_len=_count(row, "input_len"),
        output_len=_count(row, "output_len"),
        draft_tokens=_drafted(row, accepted),
        accepted=accepted,
        cached_len=_count(row, "cached_len", 0, least=0),
    )
    check_traffic(traffic)
    return traffic


def row_fits(deployment: Deployment, traffic: Traffic) -> bool:
    """Whether weights and the KV of all requests at their full length stand in memory."""
    return deployment_ledger(deployment, traffic).fits


@cache
def _model(name: str) -> MoEModel:
    return load_model(name)


@cache
def _cluster(name: str, gpus: int) -> Cluster:
    cluster = load_hardware(name)
    return cluster if cluster.gpus > 1 or gpus == 1 else load_hardware(f"{gpus}x{name}")


def _checkpoint(model: MoEModel, precision: str) -> str:
    names = _CHECKPOINTS.get(precision.lower())
    if names is None:
        return precision
    published = precision_names(model)
    return next((name for name in names if name in published), names[-1])


def _usual_kv_dtype(model: MoEModel, precision: Precision) -> str:
    weights = weight_format(precision.formats["routed" if model.experts else "dense"])
    return "bf16" if weights.family == "plain" else "fp8"


def _word(row: Mapping[str, str], column: str) -> str:
    value = (row.get(column) or "").strip()
    if not value:
        raise InputError(f"{column}: the row has none")
    return value


def _count(
    row: Mapping[str, str], column: str, otherwise: int | None = None, *, least: int = 1
) -> int:
    text = (row.get(column) or "").strip()
    if not text and otherwise is not None:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (value >= least and value.is_integer()):  # also refuses NaN
        raise InputError(f"{column}: '{text}' is not a whole number of at least {least}")
    return int(value)


def _drafted(row: Mapping[str, str], accepted: float) -> int:
    """Tokens proposed a step; of a draft that stops by itself as many as a step yields."""
    text = (row.get("draft") or "").lower()
    if text.startswith(_STOPS_BY_ITSELF):
        return ceil(accepted)
    found = re.search(r"\bk=(\d+)", text)
    return int(found[1]) if found else _count(row, "draft_tokens", 0, least=0)


def _accepted(row: Mapping[str, str]) -> float:
    text = (row.get("acceptance_len") or "1").strip()
    try:
        return float(text)
    except ValueError:
        raise InputError(f"acceptance_len: '{text}' is not a number") from None
