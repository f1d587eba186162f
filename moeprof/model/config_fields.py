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


class ConfigFields(_Facts):
    """The language model. None stands for what the file does not say."""

    hidden_size: Size
    layers: Layers
    heads: Size
    kv_heads: Size
    head_dim: Size | None = None
    vocab_size: Size
    max_positions: Size
    tied_embeddings: bool | None = None
    experts: Count = 0
    top_k: Count | None = None
    moe_width: Size | None = None
    width: Size | None = None
    dense_width: Size | None = None
    shared_experts: Count | None = None
    shared_width: Count | None = None
    qkv_bias: bool | None = None
    mlp_bias: bool = False
    use_qk_norm: bool | None = None
    qk_norm_type: str | None = None
    use_routing_bias: bool | None = None
    mlp_layer_types: list[str] | None = None
    moe_layer_freq: list[int | bool] | Size | None = None
    first_dense: Count = 0
    sparse_step: Size = 1
    dense_layers: list[int] = []
    attention_layer_types: list[str] | None = None
    sparse_attention: bool = True
    sparse_attention_freq: list[int | bool] | None = None
    index_heads: Size | None = None
    index_head_dim: Size | None = None
    index_block_size: Size | None = None
    index_top_blocks: Size | None = None

    @model_validator(mode="after")
    def _choice_is_possible(self) -> Self:
        if self.top_k is not None and self.top_k > self.experts:
            raise ValueError(f"top_k: {self.top_k} experts of {self.experts} cannot be chosen")
        if self.experts and self.top_k == 0:
            raise ValueError(f"top_k: 0 of {self.experts} experts would be chosen")
        return self


class VisionFields(_Facts):
    """The vision tower and the projector behind it."""

    hidden_size: Size
    width: Size
    layers: Layers
    patch_size: Size
    channels: Size
    temporal_patch_size: Size
    spatial_merge_size: Size
    projector_width: Size


_F = TypeVar("_F", bound=_Facts)


def text_fields(config: Mapping[str, Any], where: str) -> ConfigFields:
    """The checked facts of the language model in `config`; errors name `where` and the key."""
    text = text_part(config)
    if "tie_word_embeddings" not in text and "tie_word_embeddings" in config:
        text = {**text, "tie_word_embeddings": config["tie_word_embeddings"]}
    if text.get("num_key_value_heads", 0) is None:  # null, not absent: as many as query heads
        text = {**text, "num_key_value_heads": text.get("num_attention_heads")}
    return _checked(ConfigFields, text, TEXT_ALIASES, where)


def vision_fields(config: Mapping[str, Any], where: str) -> VisionFields:
    """The checked facts of the vision tower in `config`."""
    return _checked(VisionFields, config, VISION_ALIASES, where)


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
