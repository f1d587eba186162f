"""The facts of a config.json, checked: pydantic stands where the file enters the program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moeprof.errors import ModelError
from moeprof.model.config_keys import TEXT_ALIASES, VISION_ALIASES, find_values, text_part

Size = Annotated[int, Field(gt=0, le=2**40)]
Count = Annotated[int, Field(ge=0, le=2**20)]
Layers = Annotated[int, Field(gt=0, le=10_000)]


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class RoutingFields(_Facts):
    """What recording needs of a language model. None stands for what the file does not say."""

    hidden_size: Size
    layers: Layers
    vocab_size: Size
    max_positions: Size | None = None
    tied_embeddings: bool | None = None
    experts: Count = 0
    top_k: Count | list[Count] | None = None
    moe_width: Size | list[Size] | None = None
    width: Size | None = None
    shared_experts: Count | None = None
    shared_width: Count | None = None
    routes: bool = True
    mlp_layer_types: list[str] | None = None
    layer_blocks: list[str] | None = None
    layer_letters: str | None = None
    moe_layer_freq: list[int | bool] | Size | None = None
    listed_moe_layers: list[int] | None = None
    enumerated_moe_layers: Annotated[str, Field(pattern=r"^\d+(,\d+)*$")] | None = None
    first_dense: Count = 0
    last_moe: Annotated[int, Field(ge=-1)] = -1
    sparse_step: Size = 1
    expert_period: Size = 1
    expert_offset: Count = 0
    dense_layers: list[int] = []

    @model_validator(mode="after")
    def _choice_is_possible(self) -> Self:
        chosen = self.one_top_k
        if chosen is not None and chosen > self.experts:
            raise ValueError(f"top_k: {chosen} experts of {self.experts} cannot be chosen")
        if self.experts and chosen == 0:
            raise ValueError(f"top_k: 0 of {self.experts} experts would be chosen")
        return self

    @property
    def one_top_k(self) -> int | None:
        """`top_k` where every layer has the same."""
        return _one_of(self.top_k)

    @property
    def expert_width(self) -> int | None:
        """`moe_width`; families without it call the expert's width `intermediate_size`."""
        return self.width if self.moe_width is None else _one_of(self.moe_width)


class ConfigFields(RoutingFields):
    """What counting its tensors needs beside."""

    heads: Size
    kv_heads: Size
    head_dim: Count | None = None
    dense_width: Size | None = None
    qkv_bias: bool | None = None
    mlp_bias: bool = False
    use_qk_norm: bool | None = None
    qk_norm_type: str | None = None
    use_routing_bias: bool | None = None
    attention_layer_types: list[str] | None = None
    attention_interval: Size | None = None
    sliding_window: Count | None = None
    query_rank: Size | None = None
    latent_rank: Size | None = None
    nope_dim: Size | None = None
    rope_dim: Count | None = None
    value_dim: Size | None = None
    linear_key_heads: Size | None = None
    linear_value_heads: Size | None = None
    linear_key_dim: Size | None = None
    linear_value_dim: Size | None = None
    linear_kernel: Size | None = None
    prediction_layers: Count = 0
    sparse_attention: bool = True
    sparse_attention_freq: list[int | bool] | None = None
    indexer_types: list[str] | None = None
    index_heads: Size | None = None
    index_head_dim: Size | None = None
    index_block_size: Size | None = None
    index_top_blocks: Size | None = None


class VisionFields(_Facts):
    """What every vision tower states."""

    hidden_size: Size
    width: Size
    layers: Layers
    patch_size: Size
    channels: Size = 3


class ClipFields(VisionFields):
    """The tower of MiniMax-M3 and the two-step projector behind it."""

    temporal_patch_size: Size
    spatial_merge_size: Size
    projector_width: Size


class QwenVisionFields(VisionFields):
    """The tower of Qwen3-VL and Qwen3.5, with a merger behind the last and some inner layers."""

    temporal_patch_size: Size
    spatial_merge_size: Size
    positions: Size
    output_size: Size
    deepstack_layers: list[Count] = []


class MoonVitFields(VisionFields):
    """The tower of Kimi K2.5."""

    merge_kernel: list[Size]
    projector_input: Size
    position_rows: Size
    position_columns: Size


_F = TypeVar("_F", bound=_Facts)


def _one_of(value: int | list[int] | None) -> int | None:
    """What a list repeats; None where its entries differ."""
    if isinstance(value, list):
        return value[0] if len(set(value)) == 1 else None
    return value


def text_fields(kind: type[_F], config: Mapping[str, Any], where: str) -> _F:
    """The checked facts of the language model in `config`; errors name `where` and the key."""
    text = dict(text_part(config))
    if "tie_word_embeddings" not in text and "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    if text.get("num_key_value_heads", 0) is None:  # null, not absent: as many as query heads
        text["num_key_value_heads"] = text.get("num_attention_heads")
    blocks = text.get("layers_block_type")
    if isinstance(blocks, list) and text.get("num_hidden_layers") is None:
        text["num_hidden_layers"] = len(blocks)
    return _checked(kind, text, {name: TEXT_ALIASES[name] for name in kind.model_fields}, where)


def vision_fields(kind: type[_F], config: Mapping[str, Any], where: str) -> _F:
    """The checked facts of the vision tower in `config`, of the `kind` that it is."""
    aliases = {name: VISION_ALIASES[name] for name in kind.model_fields}
    return _checked(kind, config, aliases, where)


def required(fields: _Facts, name: str, where: str) -> int:
    """A size that this layout cannot do without. Raises ModelError naming its keys."""
    value = getattr(fields, name)
    if value is None:
        raise ModelError(f"{where}: {' or '.join(TEXT_ALIASES[name])} is missing")
    return int(value)


def _checked(
    kind: type[_F], config: Mapping[str, Any], aliases: Mapping[str, tuple[str, ...]], where: str
) -> _F:
    values, keys = find_values(config, aliases, where)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ModelError(f"{where}: {_explain(error, aliases, keys)}") from None


def _explain(
    error: ValidationError, aliases: Mapping[str, tuple[str, ...]], keys: Mapping[str, str]
) -> str:
    """The first problem in one line, under the name that the file uses."""
    problem = error.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        name, _, message = message.partition(": ")
        return f"{keys.get(name, name)}: {message}"
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{' or '.join(aliases[name])} is missing"
    return f"{keys.get(name, name)}: {message}, not {problem['input']!r}"
