"""What a model is: layers, experts, attention, and the exact inventory of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from moeprof.errors import ModelError
from moeprof.model.attention import (
    Attention,
    Indexer,
    LinearAttention,
    kv_bytes_per_token_per_rank,
)
from moeprof.model.formats import weight_format
from moeprof.model.tensors import TENSOR_CLASSES, TensorGroup, count_parameters
from moeprof.result import Result

_PARTS = {"attention": Attention, "indexer": Indexer, "linear": LinearAttention}
# Classes that one token reads whole; of "routed" it reads top_k experts a layer.
_ACTIVE_CLASSES = ("attention", "shared", "dense", "indexer", "router")


@dataclass(frozen=True)
class MoEModel(Result):
    """A decoder with or without routed experts.

    `layers` counts decoder layers, `moe_layers` holds the native indices of those that route (empty
    for a dense model; `experts` and `top_k` are then 0). `expert_intermediate_size` is the width of
    a routed expert. Sizes that nobody stated are 0. `parameters` maps total, active and every
    tensor class to counts; it is empty where the tensors were not counted.

    Active parameters are what one token reads: top_k experts a layer, attention, shared, dense,
    indexer and router; without embedding, head, norms and vision. Modules for multi-token
    prediction serve speculation alone: they stand in `prediction_tensors` and in no count but
    `prediction_parameters`.
    """

    name: str
    model_type: str
    hidden_size: int
    layers: int
    moe_layers: tuple[int, ...]
    experts: int
    top_k: int
    shared_experts: int = 0
    expert_intermediate_size: int = 0
    vocab_size: int = 0
    max_positions: int = 0
    tied_embeddings: bool = False
    attention: Attention | None = None
    indexer: Indexer | None = None
    linear: LinearAttention | None = None
    tensors: tuple[TensorGroup, ...] = ()
    prediction_tensors: tuple[TensorGroup, ...] = ()
    parameters: Mapping[str, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "parameters", self._parameters())

    @classmethod
    def preset(cls, name: str) -> MoEModel:
        """A model that ships with moeprof. Raises ModelError naming near presets."""
        from moeprof.model.presets import read_preset

        return cls.from_config(read_preset(name), name=name)

    @classmethod
    def from_config(
        cls,
        config: str | Path | Mapping[str, Any],
        *,
        name: str | None = None,
        count_tensors: bool = True,
    ) -> MoEModel:
        """The model that a Hugging Face configuration describes.

        `config` is a config.json, a folder that holds one, or its content. With
        `count_tensors=False` only layers and routing are read: enough to record and replay a model
        whose tensors cannot be counted. Raises ModelError, one line with file and key, for a value
        that is missing, impossible or not known to be exact.
        """
        from moeprof.model.config_reader import read_model

        return read_model(config, name=name, count_tensors=count_tensors)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MoEModel:
        """The inverse of `to_dict`.

        What a later version added is passed over; an inventory with classes of tensors that this
        version does not know is left out whole, since its sums would be wrong. Raises ModelError
        where `plain` is not a model.
        """
        try:
            values = _known(cls, plain)
            values["moe_layers"] = tuple(values["moe_layers"])
            for name, kind in _PARTS.items():
                if values.get(name) is not None:
                    values[name] = kind(**_known(kind, values[name]))
            for name in ("tensors", "prediction_tensors"):
                values[name] = _tensors_from(values.get(name, ()))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"not a stored model: {error}") from None

    @property
    def token_cycle(self) -> int:
        """Experts that one token reads: MoE layers x top_k (228 for MiniMax-M3).

        A global LRU cache with up to (MoE layers - 1) x top_k slots never hits in decode.
        """
        return len(self.moe_layers) * self.top_k

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert; 0 for a dense model. Raises ModelError if uncounted."""
        return sum(group.parameters for group in self._expert_tensors())

    @property
    def prediction_parameters(self) -> int:
        """Parameters of the modules for multi-token prediction, which no other count holds."""
        return sum(group.parameters for group in self.prediction_tensors)

    def bytes_per_expert(self, format: str) -> int:
        """Bytes of one routed expert in a weight format (`formats.FORMATS`), scales included.

        Biases stay BF16. Raises InputError for an unknown format, ModelError if uncounted.
        """
        chosen, vector = weight_format(format), weight_format("bf16")
        return sum(
            group.count * (vector if group.is_vector else chosen).tensor_bytes(group.shape)
            for group in self._expert_tensors()
        )

    def kv_bytes_per_token_per_rank(
        self, tp: int = 1, kv_dtype: str = "bf16", index_dtype: str = "bf16"
    ) -> int:
        """Cache bytes of one token on one of `tp` tensor-parallel ranks.

        Keys and values of every layer but those of linear attention, and one index key a layer
        with an indexer, which stands on every rank (`attention.kv_bytes_per_token_per_rank`).
        Layers with a sliding window count like the others, so for such a model this is an upper
        bound. For MiniMax-M3: 61,440 / min(tp, 4) x kv + 7,296 x index bytes (reproduces
        https://github.com/SemiAnalysisAI/InferenceX/pull/2511).
        """
        if self.attention is None:
            raise ModelError(f"{self.name}: the attention heads are not known")
        layers = self.layers - (self.linear.layers if self.linear else 0)
        total = kv_bytes_per_token_per_rank(self.attention, layers, tp, kv_dtype)
        if self.indexer is not None:
            index_key = weight_format(index_dtype).tensor_bytes((self.indexer.head_dim,))
            total += self.indexer.layers * index_key
        return total

    def state_bytes_per_sequence_per_rank(
        self, tp: int = 1, state_dtype: str = "fp32", conv_dtype: str = "bf16"
    ) -> int:
        """Bytes that linear attention keeps for one sequence of any length on one rank; else 0."""
        if self.linear is None:
            return 0
        return self.linear.state_bytes_per_rank(tp, state_dtype, conv_dtype)

    def cache_bytes_per_sequence_per_rank(
        self, tokens: int, tp: int = 1, kv_dtype: str = "bf16", index_dtype: str = "bf16"
    ) -> int:
        """Cache bytes of a sequence of `tokens` on one rank.

        Exact where `kv_bytes_per_token_per_rank` is a bound: layers with a sliding window hold no
        more than the window, and linear attention its state alone.
        """
        if tokens < 0:
            raise ModelError(f"{tokens} tokens is below 0")
        total = tokens * self.kv_bytes_per_token_per_rank(tp, kv_dtype, index_dtype)
        if self.attention is not None and self.attention.sliding_window:
            sliding = self.attention.sliding_layers
            beyond = max(0, tokens - self.attention.sliding_window)
            total -= beyond * kv_bytes_per_token_per_rank(self.attention, sliding, tp, kv_dtype)
        return total + self.state_bytes_per_sequence_per_rank(tp)

    def counted_tensors(self) -> tuple[TensorGroup, ...]:
        """The inventory. Raises ModelError where it was not taken."""
        if not self.tensors:
            raise ModelError(f"{self.name}: the tensors of this model were not counted")
        return self.tensors

    def _expert_tensors(self) -> list[TensorGroup]:
        """The tensors of one single expert."""
        each = len(self.moe_layers) * self.experts
        return [
            TensorGroup(group.tensor_class, group.name, group.shape, group.count // each)
            for group in self.counted_tensors()
            if group.tensor_class == "routed"
        ]

    def _parameters(self) -> dict[str, int]:
        if not self.tensors:
            return {}
        by_class = count_parameters(self.tensors)
        active = sum(by_class[name] for name in _ACTIVE_CLASSES)
        if self.experts:
            active += by_class["routed"] * self.top_k // self.experts
        counts = {"total": sum(by_class.values()), "active": active}
        return counts | {name: by_class[name] for name in TENSOR_CLASSES}

    def _check(self) -> None:
        if not 0 <= self.top_k <= self.experts:
            raise ModelError(f"{self.name}: top_k {self.top_k} of {self.experts} experts")
        if bool(self.moe_layers) != bool(self.experts and self.top_k):
            raise ModelError(
                f"{self.name}: {len(self.moe_layers)} MoE layers, {self.experts} experts and "
                f"top_k {self.top_k} do not go together"
            )
        ascending = list(self.moe_layers) == sorted(set(self.moe_layers))
        if not ascending or any(not 0 <= i < self.layers for i in self.moe_layers):
            raise ModelError(
                f"{self.name}: MoE layers must be ascending indices below {self.layers}"
            )


def _known(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `plain` that are fields of the dataclass `kind`."""
    known = {f.name for f in fields(kind) if f.init}
    return {key: value for key, value in plain.items() if key in known}


def _tensors_from(groups: Iterable[Mapping[str, Any]]) -> tuple[TensorGroup, ...]:
    listed = [_known(TensorGroup, group) for group in groups]
    if any(group["tensor_class"] not in TENSOR_CLASSES for group in listed):
        return ()
    return tuple(TensorGroup(**{**group, "shape": tuple(group["shape"])}) for group in listed)
