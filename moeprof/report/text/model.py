"""What a model is made of."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.model import FORMATS, MoEModel
from moeprof.report.text.layout import pairs, table, wrapped
from moeprof.report.wording import percent

FORMAT_NAMES = tuple(name for name in FORMATS if name not in ("fp16", "fp32"))


def model_text(
    model: MoEModel, *, tp: int = 1, kv_dtype: str = "bf16", index_dtype: str = "bf16"
) -> str:
    """Shape, parameters by class, bytes of an expert by format, and KV bytes a token."""
    parts = [pairs(_shape(model))]
    if model.parameters:
        parts.append(_parameters(model))
    else:
        parts.append(wrapped("The tensors of this architecture are not counted: no parameters."))
    if model.parameters and model.moe_layers:
        parts.append(_expert_bytes(model, FORMAT_NAMES))
    if model.attention is not None:
        size = model.kv_bytes_per_token_per_rank(tp, kv_dtype, index_dtype)
        key = f", index key in {index_dtype}" if model.indexer else ""
        parts.append(f"KV cache: {size:,} bytes a token on each rank (TP {tp}, {kv_dtype}{key})")
    return "\n\n".join(parts)


def _shape(model: MoEModel) -> dict[str, str]:
    values = {
        "model": f"{model.name} ({model.model_type})",
        "layers": f"{model.layers}, of which {len(model.moe_layers)} route",
        "hidden size": f"{model.hidden_size:,}",
    }
    if model.moe_layers:
        shared = f", {model.shared_experts} shared" if model.shared_experts else ""
        values["experts"] = (
            f"{model.experts} a layer, top-{model.top_k}{shared}, "
            f"width {model.expert_intermediate_size:,}"
        )
        values["token cycle"] = f"{model.token_cycle:,} experts read for one token"
    if model.attention is not None:
        a = model.attention
        values["attention"] = f"{a.heads} query heads, {a.kv_heads} KV heads of {a.head_dim}"
    if model.indexer is not None:
        i = model.indexer
        values["indexer"] = f"in {i.layers} layers, {i.heads} heads of {i.head_dim}"
    return values


def _parameters(model: MoEModel) -> str:
    total = model.parameters["total"]
    rows = [
        [name, f"{number:,}", percent(number / total)] for name, number in model.parameters.items()
    ]
    return table(["parameters", "count", "of total"], rows)


def _expert_bytes(model: MoEModel, formats: Sequence[str]) -> str:
    experts = len(model.moe_layers) * model.experts
    rows = []
    for name in formats:
        size = model.bytes_per_expert(name)
        rows.append(
            [
                name,
                f"{FORMATS[name].bits_per_weight:g}",
                f"{size:,}",
                f"{size * experts / 1e9:,.1f}",
                f"{size * model.token_cycle / 1e9:,.2f}",
            ]
        )
    columns = ["format", "bits/weight", "bytes/expert", "all experts, GB", "one token, GB"]
    return table(columns, rows)
