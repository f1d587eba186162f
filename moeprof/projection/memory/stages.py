"""Pipeline stages: each is a model of its own, with fewer layers and its share of every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from moeprof.errors import InputError
from moeprof.model import MoEModel, TensorGroup


def stage_models(
    model: MoEModel, pp: int, stage_layers: Sequence[int] | None = None
) -> tuple[MoEModel, ...]:
    """`model` cut into `pp` runs of layers, in order.

    Without `stage_layers` layers are shared out as vLLM does it: equally, and what is left over
    one each from the last stage but one forwards, since the last has the head (get_pp_indices of
    vllm/distributed/utils.py at https://github.com/vllm-project/vllm). Embedding and vision tower
    stand on the first stage, head, last norm and prediction modules on the last, which holds a
    tied embedding too. Layers with a window or a state are taken to lie evenly among the others.
    Raises InputError where `stage_layers` are not `pp` positive counts of all layers.
    """
    if pp == 1 and stage_layers is None:
        return (model,)
    counts = _even(model.layers, pp) if stage_layers is None else list(stage_layers)
    if len(counts) != pp or sum(counts) != model.layers or min(counts) < 1:
        raise InputError(
            f"stage_layers {counts} are not {pp} stages of the {model.layers} layers of "
            f"{model.name}"
        )
    return tuple(_stage(model, a, b) for a, b in pairwise(accumulate(counts, initial=0)))


def _even(layers: int, pp: int) -> list[int]:
    each, left = divmod(layers, pp)
    return [each + (pp - 1 - left <= stage < pp - 1) for stage in range(pp)]


def _stage(model: MoEModel, first: int, end: int) -> MoEModel:
    routing = tuple(i - first for i in model.moe_layers if first <= i < end)
    attention, indexer, linear = model.attention, model.indexer, model.linear
    spread = _Spread(model, first, end)
    last = end == model.layers
    return replace(
        model,
        layers=end - first,
        moe_layers=routing,
        experts=model.experts if routing else 0,
        top_k=model.top_k if routing else 0,
        attention=attention
        and replace(attention, sliding_layers=spread.even(attention.sliding_layers)),
        indexer=indexer and replace(indexer, layers=spread.indexed(indexer.layers)),
        linear=linear and replace(linear, layers=spread.even(linear.layers)),
        tensors=_share(spread, model.counted_tensors()),
        prediction_tensors=model.prediction_tensors if last else (),
    )


def _share(spread: _Spread, tensors: Sequence[TensorGroup]) -> tuple[TensorGroup, ...]:
    groups = (replace(group, count=spread.count(group)) for group in tensors)
    return tuple(group for group in groups if group.count)


class _Spread:
    """How many of something that belongs to layers stands in the layers `first` to `end`."""

    def __init__(self, model: MoEModel, first: int, end: int) -> None:
        self.model, self.first, self.end = model, first, end

    def even(self, count: int) -> int:
        """Of `count` things spread evenly over all layers; the stages sum to `count`."""
        layers = self.model.layers
        return count * self.end // layers - count * self.first // layers

    def routing(self, count: int) -> int:
        """Of `count` things of the layers that route."""
        inside = sum(self.first <= i < self.end for i in self.model.moe_layers)
        return count * inside // len(self.model.moe_layers)

    def dense(self, count: int) -> int:
        """Of `count` things of the layers that do not route."""
        inside = sum(self.first <= i < self.end for i in self.model.moe_layers)
        whole = self.model.layers - len(self.model.moe_layers)
        return count * (self.end - self.first - inside) // whole

    def indexed(self, count: int) -> int:
        """Of `count` things of the layers with an indexer: the routing ones, or any."""
        indexer = self.model.indexer
        if indexer is not None and indexer.layers == len(self.model.moe_layers):
            return self.routing(count)
        return self.even(count)

    def count(self, group: TensorGroup) -> int:
        """Tensors of `group` in these layers."""
        ends = self.first == 0, self.end == self.model.layers
        if group.tensor_class in ("embedding", "vision"):
            tied = group.tensor_class == "embedding" and self.model.tied_embeddings
            return group.count if ends[0] or (tied and ends[1]) else 0
        if group.tensor_class == "head" or group.name == "final_norm":
            return group.count if ends[1] else 0
        by_class = {
            "routed": self.routing,
            "router": self.routing,
            "shared": self.routing,
            "dense": self.dense,
            "indexer": self.indexed,
        }
        return by_class.get(group.tensor_class, self.even)(group.count)
