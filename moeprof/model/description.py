"""What `models show` answers: a model's shape, parameters, and bytes by format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moeprof.model.attention import Attention, Indexer, LinearAttention
from moeprof.model.formats import FORMATS
from moeprof.model.loading import load_model
from moeprof.model.moe_model import MoEModel
from moeprof.model.presets import preset_names
from moeprof.result import Result


@dataclass(frozen=True)
class ModelDescription(Result):
    """A model in numbers. Bytes are of one routed expert, and of one token's cache on one rank.

    Beside stand the parameters of modules for multi-token prediction, which `parameters` does not
    count, and the bytes that linear attention keeps for a sequence.
    """

    name: str
    model_type: str
    layers: int
    moe_layers: int
    moe_layer_indices: tuple[int, ...]
    experts: int
    top_k: int
    shared_experts: int
    hidden_size: int
    expert_intermediate_size: int
    vocab_size: int
    max_positions: int
    token_cycle: int
    parameters: Mapping[str, int]
    prediction_parameters: int
    expert_parameters: int
    bytes_per_expert: Mapping[str, int]
    kv_bytes_per_token_per_rank: int
    state_bytes_per_sequence_per_rank: int
    attention: Attention | None
    indexer: Indexer | None
    linear: LinearAttention | None
    tp: int
    kv_dtype: str
    index_dtype: str


def describe_model(
    model: MoEModel | str | Path, *, tp: int = 1, kv_dtype: str = "bf16", index_dtype: str = "bf16"
) -> ModelDescription:
    """`model` in numbers, its cache bytes for `tp` tensor-parallel ranks and these cache formats.

    Raises ModelError for an unknown model, InputError for an unknown format.
    """
    model = load_model(model)
    return ModelDescription(
        name=model.name,
        model_type=model.model_type,
        layers=model.layers,
        moe_layers=len(model.moe_layers),
        moe_layer_indices=model.moe_layers,
        experts=model.experts,
        top_k=model.top_k,
        shared_experts=model.shared_experts,
        hidden_size=model.hidden_size,
        expert_intermediate_size=model.expert_intermediate_size,
        vocab_size=model.vocab_size,
        max_positions=model.max_positions,
        token_cycle=model.token_cycle,
        parameters=model.parameters,
        prediction_parameters=model.prediction_parameters,
        expert_parameters=model.expert_parameters,
        bytes_per_expert={name: model.bytes_per_expert(name) for name in FORMATS},
        kv_bytes_per_token_per_rank=model.kv_bytes_per_token_per_rank(tp, kv_dtype, index_dtype),
        state_bytes_per_sequence_per_rank=model.state_bytes_per_sequence_per_rank(tp),
        attention=model.attention,
        indexer=model.indexer,
        linear=model.linear,
        tp=tp,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
    )


@dataclass(frozen=True)
class ModelList(Result):
    """The models known by name."""

    models: list[ModelDescription]


def list_models() -> ModelList:
    """Every preset, described."""
    return ModelList([describe_model(MoEModel.preset(name)) for name in preset_names()])
