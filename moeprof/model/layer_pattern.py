"""Which layers route and how they attend, from the many ways configs say it."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING

from moeprof.errors import ModelError

if TYPE_CHECKING:
    from moeprof.model.config_fields import ConfigFields, RoutingFields

_FULL = {"full_attention"}
_SLIDING = {"sliding_attention", "chunked_attention"}
_INDEXED = {"indexed_attention", "deepseek_sparse_attention"}
_LINEAR = {"linear_attention"}

# How lists of layers call one with a router; whatever else stands there has none.
_ROUTING = {"sparse", "moe", "hash_moe"}
_ROUTING_LETTER = "E"  # Nemotron-H writes one letter a layer


def moe_layers(fields: RoutingFields, where: str) -> tuple[int, ...]:
    """Native indices of the layers with a router; empty for a dense model.

    A list that names layers wins; else the rules of several families, each silent where its keys
    are absent: DeepSeek (`first_k_dense_replace`, then every `moe_layer_freq`-th), Qwen (every
    `decoder_sparse_step`-th but `mlp_only_layers`), Ernie (up to `moe_layer_end_index`) and Jamba
    (`expert_layer_period` from `expert_layer_offset`).
    """
    if not fields.experts or not fields.routes:
        return ()
    listed = _listed_moe_layers(fields, where)
    if listed is not None:
        return listed
    if isinstance(fields.moe_layer_freq, list):
        return _flagged(fields.moe_layer_freq, fields.layers, "moe_layer_freq", where)
    every = fields.moe_layer_freq or 1
    end = fields.layers if fields.last_moe < 0 else fields.last_moe + 1
    return tuple(
        i
        for i in range(fields.first_dense, min(end, fields.layers))
        if i % every == 0
        and (i + 1) % fields.sparse_step == 0
        and i % fields.expert_period == fields.expert_offset
        and i not in fields.dense_layers
    )


def _listed_moe_layers(fields: RoutingFields, where: str) -> tuple[int, ...] | None:
    """The layers that a list names, in whatever form; None where there is no list."""
    if fields.mlp_layer_types is not None:
        kinds = fields.mlp_layer_types
        _same_length(kinds, fields.layers, "mlp_layer_types", where)
        _known(set(kinds), _ROUTING | {"dense"}, "mlp_layer_types", where)
        return tuple(i for i, kind in enumerate(kinds) if kind in _ROUTING)
    if fields.layer_blocks is not None and not _ROUTING.isdisjoint(fields.layer_blocks):
        _same_length(fields.layer_blocks, fields.layers, "layers_block_type", where)
        return tuple(i for i, kind in enumerate(fields.layer_blocks) if kind in _ROUTING)
    if fields.layer_letters is not None:
        _same_length(fields.layer_letters, fields.layers, "hybrid_override_pattern", where)
        return tuple(i for i, c in enumerate(fields.layer_letters) if c == _ROUTING_LETTER)
    if fields.enumerated_moe_layers is not None:
        return _indices(map(int, fields.enumerated_moe_layers.split(",")), fields.layers)
    if fields.listed_moe_layers is not None:
        return _indices(fields.listed_moe_layers, fields.layers)
    return None


def _indices(listed: Iterable[int], layers: int) -> tuple[int, ...]:
    """`listed` in order; indices from `layers` on belong to prediction modules."""
    return tuple(sorted({i for i in listed if 0 <= i < layers}))


def linear_layers(fields: ConfigFields, where: str) -> tuple[int, ...]:
    """Native indices of the layers of linear attention: named, or all but every n-th."""
    if fields.linear_value_heads is None:
        return ()
    if fields.attention_layer_types is not None:
        return _named(fields, _LINEAR, where)
    if fields.attention_interval is None:
        raise ModelError(f"{where}: layer_types or full_attention_interval is missing")
    return tuple(i for i in range(fields.layers) if (i + 1) % fields.attention_interval)


def sliding_layers(fields: ConfigFields, where: str) -> tuple[int, ...]:
    """Native indices of the layers that look back no further than a window."""
    return _named(fields, _SLIDING, where)


def indexed_layers(fields: ConfigFields, where: str, *, every: bool) -> tuple[int, ...]:
    """Native indices of the layers whose attention has an indexer (MiniMax-M3: layers 3 to 59).

    With `every` all layers have one, but those that `indexer_types` calls shared. Raises
    ModelError for a kind of attention that is not known, and where an indexer is described
    without saying which layers have it.
    """
    if every:
        kinds = fields.indexer_types or ["full"] * fields.layers
        _same_length(kinds, fields.layers, "indexer_types", where)
        _known(set(kinds), {"full", "shared"}, "indexer_types", where)
        return tuple(i for i, kind in enumerate(kinds) if kind == "full")
    named = _named(fields, _sparse(_kinds(fields)), where)
    if fields.sparse_attention_freq is not None and fields.sparse_attention:
        return _flagged(fields.sparse_attention_freq, fields.layers, "sparse_attention_freq", where)
    if fields.index_heads and fields.sparse_attention and fields.attention_layer_types is None:
        raise ModelError(
            f"{where}: sparse_attention_freq or layer_types is missing: an indexer of "
            f"{fields.index_heads} heads is described, but not which layers have it"
        )
    return named


def _named(fields: ConfigFields, wanted: set[str], where: str) -> tuple[int, ...]:
    """The layers that `layer_types` gives one of the `wanted` kinds of attention."""
    kinds = _kinds(fields)
    if not kinds:
        return ()
    _same_length(kinds, fields.layers, "layer_types", where)
    known = _FULL | _SLIDING | _sparse(kinds)
    known |= _LINEAR if fields.linear_value_heads else set()
    _known(set(kinds), known, "layer_types", where)
    return tuple(i for i, kind in enumerate(kinds) if kind in wanted)


def _kinds(fields: ConfigFields) -> list[str]:
    return fields.attention_layer_types or []


def _sparse(kinds: list[str]) -> set[str]:
    return {kind for kind in kinds if kind.endswith("_sparse") or kind in _INDEXED}


def _flagged(flags: list[int | bool], layers: int, key: str, where: str) -> tuple[int, ...]:
    _same_length(flags, layers, key, where)
    _known(set(flags), {0, 1}, key, where)
    return tuple(i for i, flag in enumerate(flags) if flag)


def _same_length(values: Sized, layers: int, key: str, where: str) -> None:
    if len(values) != layers:
        raise ModelError(f"{where}: {key} names {len(values)} layers, num_hidden_layers {layers}")


def _known(
    found: set[str] | set[int | bool], known: set[str] | set[int], key: str, where: str
) -> None:
    strange = sorted(str(value) for value in found if value not in known)
    if strange:
        raise ModelError(f"{where}: {key}: '{strange[0]}' is none of {sorted(map(str, known))}")
