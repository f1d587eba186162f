"""What a model is made of, and the models known by name."""

from __future__ import annotations

from moeprof.model import FORMATS, ModelDescription, ModelList
from moeprof.report.text.layout import pairs, table, wrapped
from moeprof.report.wording import held_bytes, percent


def model_text(model: ModelDescription) -> str:
    """Shape, parameters by class, bytes of an expert by format, and KV bytes a token."""
    parts = [pairs(_shape(model)), _parameters(model)]
    if model.moe_layers:
        parts.append(_expert_bytes(model))
    parts.append(wrapped(_cache(model)))
    if model.prediction_parameters:
        parts.append(
            wrapped(
                f"Not counted above: {model.prediction_parameters:,} parameters of modules for "
                "multi-token prediction, which only speculative decoding loads."
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
            f"{model.kv_bytes_per_token_per_rank / 1e3:.1f}",
        ]
        for model in models.models
    ]
    columns = ["model", "total, 1e9", "active, 1e9", "layers", "MoE", "experts", "kB/token"]
    note = (
        "Active parameters are what one token reads, without embedding and head, which publishers "
        "often count. kB/token: cache on one GPU in BF16, all layers keeping the token."
    )
    return f"{table(columns, rows)}\n\n{wrapped(note)}"


def _cache(model: ModelDescription) -> str:
    """What a token and a sequence leave in the cache of a rank."""
    index = f", index key in {model.index_dtype}" if model.indexer else ""
    ranks = "one GPU" if model.tp == 1 else f"each of {model.tp} tensor-parallel ranks"
    text = (
        f"Cache: {model.kv_bytes_per_token_per_rank:,} bytes a token on {ranks}, KV in "
        f"{model.kv_dtype}{index}."
    )
    attention, linear = model.attention, model.linear
    if attention and attention.latent_dim:
        text += " The latent vector belongs to all heads: every rank holds it whole."
    if attention and attention.sliding_layers and attention.sliding_window:
        text += (
            f" That is while all {model.layers} layers keep the token; "
            f"{attention.sliding_layers} of them forget it after {attention.sliding_window:,}."
        )
    if linear:
        text += (
            f" Beside, {held_bytes(model.state_bytes_per_sequence_per_rank)} of state a running "
            f"sequence, in the {linear.layers} layers of linear attention."
        )
    return text


def _shape(model: ModelDescription) -> dict[str, str]:
    values = {
        "model": f"{model.name} ({model.model_type})",
        "layers": f"{model.layers}, of which {model.moe_layers} route",
        "hidden size": f"{model.hidden_size:,}",
        "attention": _attention(model),
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


def _attention(model: ModelDescription) -> str:
    """'64 heads, 8 of keys and values, of 64 numbers' and what some layers do otherwise."""
    attention = model.attention
    if attention is None:
        return "not known"
    if attention.latent_dim:
        text = f"{attention.heads} heads over one latent vector of {attention.latent_dim} numbers"
    else:
        text = (
            f"{attention.heads} heads, {attention.kv_heads} of keys and values, of "
            f"{attention.head_dim} numbers"
        )
    if attention.sliding_layers:
        text += f"; {attention.sliding_layers} layers with a window of {attention.sliding_window}"
    if model.linear:
        text += f"; {model.linear.layers} layers linear (gated delta rule)"
    if model.indexer:
        text += f"; {model.indexer.layers} layers with an indexer"
    return text


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
