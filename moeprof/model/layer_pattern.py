"""Which layers route and which attend through an indexer, from the many ways configs say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeprof.errors import ModelError

if TYPE_CHECKING:
    from moeprof.model.config_fields import ConfigFields

_PLAIN_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def moe_layers(fields: ConfigFields, where: str) -> tuple[int, ...]:
    """Native indices of the layers with a router; empty for a dense model.

    The list that names every layer wins; else the rules of DeepSeek (`first_k_dense_replace`, then
    every `moe_layer_freq`-th) and of Qwen (every `decoder_sparse_step`-th but `mlp_only_layers`).
    """
    if not fields.experts:
        return ()
    if fields.mlp_layer_types is not None:
        _same_length(fields.mlp_layer_types, fields.layers, "mlp_layer_types", where)
        _known(set(fields.mlp_layer_types), {"sparse", "dense"}, "mlp_layer_types", where)
        return tuple(i for i, kind in enumerate(fields.mlp_layer_types) if kind == "sparse")
    if isinstance(fields.moe_layer_freq, list):
        return _flagged(fields.moe_layer_freq, fields.layers, "moe_layer_freq", where)
    every = fields.moe_layer_freq or 1
    return tuple(
        i
        for i in range(fields.layers)
        if i >= fields.first_dense
        and i % every == 0
        and (i + 1) % fields.sparse_step == 0
        and i not in fields.dense_layers
    )


def indexed_layers(fields: ConfigFields, where: str) -> tuple[int, ...]:
    """Native indices of the layers whose attention has an indexer (MiniMax-M3: layers 3 to 59).

    Raises ModelError for a kind of attention that is not known, and where an indexer is described
    without saying which layers have it.
    """
    named = _named_sparse(fields, where)
    if fields.sparse_attention_freq is not None and fields.sparse_attention:
        return _flagged(fields.sparse_attention_freq, fields.layers, "sparse_attention_freq", where)
    if fields.index_heads and fields.sparse_attention and fields.attention_layer_types is None:
        raise ModelError(
            f"{where}: sparse_attention_freq or layer_types is missing: an indexer of "
            f"{fields.index_heads} heads is described, but not which layers have it"
        )
    return named


def _named_sparse(fields: ConfigFields, where: str) -> tuple[int, ...]:
    kinds = fields.attention_layer_types
    if kinds is None:
        return ()
    _same_length(kinds, fields.layers, "layer_types", where)
    sparse = {kind for kind in kinds if kind.endswith("_sparse")}
    _known(set(kinds), _PLAIN_ATTENTION | sparse, "layer_types", where)
    return tuple(i for i, kind in enumerate(kinds) if kind in sparse)


def _flagged(flags: list[int | bool], layers: int, key: str, where: str) -> tuple[int, ...]:
    _same_length(flags, layers, key, where)
    _known(set(flags), {0, 1}, key, where)
    return tuple(i for i, flag in enumerate(flags) if flag)


def _same_length(values: list[str] | list[int | bool], layers: int, key: str, where: str) -> None:
    if len(values) != layers:
        raise ModelError(f"{where}: {key} names {len(values)} layers, num_hidden_layers {layers}")


def _known(
    found: set[str] | set[int | bool], known: set[str] | set[int], key: str, where: str
) -> None:
    strange = sorted(str(value) for value in found if value not in known)
    if strange:
        raise ModelError(f"{where}: {key}: '{strange[0]}' is none of {sorted(map(str, known))}")
