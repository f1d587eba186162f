"""What a model is made of, and the models known by name."""

from __future__ import annotations

from moeprof.model import FORMATS, ModelDescription, ModelList
from moeprof.report.text.layout import pairs, table, wrapped
from moeprof.report.wording import percent


def model_text(model: ModelDescription) -> str:
    """Shape, parameters by class, bytes of an expert by format, and KV bytes a token."""
    parts = [pairs(_shape(model)), _parameters(model)]
    if model.moe_layers:
        parts.append(_expert_bytes(model))
    formats = f"KV in {model.kv_dtype}, index key in {model.index_dtype}"
    parts.append(
        wrapped(
            f"Cache: {model.kv_bytes_per_token_per_rank:,} bytes a token on each of {model.tp} "
            f"tensor-parallel ranks, {formats}."
        )
    )
    return "\n\n".join(parts)


def models_text(models: ModelList) -> str:
    """A line a model."""
    rows = [
        [
            model.name,
            f"{model.parameters['total'] / 1e9:.1f}",
            f"{model.parameters['active'] / 1e9:.1f}",
            model.layers,
            model.moe_layers,
            f"{model.top_k} of {model.experts}" if model.moe_layers else "-",
        ]
        for model in models.models
    ]
    columns = ["model", "parameters, 1e9", "active, 1e9", "layers", "MoE layers", "experts"]
    return table(columns, rows)


def _shape(model: ModelDescription) -> dict[str, str]:
    values = {
        "model": f"{model.name} ({model.model_type})",
        "layers": f"{model.layers}, of which {model.moe_layers} route",
        "hidden size": f"{model.hidden_size:,}",
    }
    if model.moe_layers:
        shared = f", {model.shared_experts} shared" if model.shared_experts else ""
        values["experts"] = (
            f"{model.experts} a layer, top-{model.top_k}{shared}, "
            f"width {model.expert_intermediate_size:,}"
        )
        values["token cycle"] = f"{model.token_cycle:,} experts read for one token"
    values["positions"] = f"{model.max_positions:,}"
    return values


def _parameters(model: ModelDescription) -> str:
    total = model.parameters["total"]
    rows = [
        [name, f"{number:,}", percent(number / total)]
        for name, number in model.parameters.items()
        if number
    ]
    return table(["parameters", "count", "of total"], rows)


def _expert_bytes(model: ModelDescription) -> str:
    experts = model.moe_layers * model.experts
    rows = [
        [
            name,
            f"{FORMATS[name].bits_per_weight:.4g}",
            f"{size:,}",
            f"{size * experts / 1e9:,.1f}",
            f"{size * model.token_cycle / 1e9:,.2f}",
        ]
        for name, size in model.bytes_per_expert.items()
    ]
    columns = ["format", "bits/weight", "bytes/expert", "all experts, GB", "one token, GB"]
    return table(columns, rows)
