"""A recording of one model, used for another: what is carried over, by a named method."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.chance import even_router_distinct
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.offload.traffic import Counts, Traffic
from moeprof.trace import Trace

METHODS = {
    "hit-ratio": "the share of misses of every event at the same fraction of resident experts, and "
    "the ratio of distinct experts to that of independent routing; layers matched by depth",
}


def check_transfer(
    trace: Trace, model: MoEModel, method: str | None, methods: Collection[str] = tuple(METHODS)
) -> bool:
    """Whether `trace` has to be carried over to `model`, by one of `methods`.

    Raises InputError where it has and no method says how, or the method is unknown.
    """
    if method is not None and method not in methods:
        raise InputError(f"transfer '{method}' is not one of {', '.join(methods)}")
    here = (len(trace.layers), trace.experts_per_layer, trace.top_k)
    there = (len(model.moe_layers), model.experts, model.top_k)
    if here == there:
        return False
    if method is None:
        raise InputError(
            f"{trace} is of {trace.model.name}, {_shape(here)}, and {model.name} has "
            f"{_shape(there)}: give --transfer {' or '.join(methods)} to carry it over"
        )
    return True


def scaled_slots(slots: int, trace: Trace, model: MoEModel, pooled: bool) -> int:
    """Slots of the recorded model that are the same fraction of its experts, at least one.

    `pooled`: `slots` are of all layers together.
    """
    most_here = trace.experts_per_layer * (len(trace.layers) if pooled else 1)
    most_there = model.experts * (len(model.moe_layers) if pooled else 1)
    if not slots:
        return 0
    return min(max(round(slots * most_here / most_there), 1), most_here)


def near_slots(slots: int, trace: Trace, model: MoEModel, pooled: bool) -> tuple[int, int, float]:
    """(fewer, more, weight of more): slots of the recorded model around the same fraction."""
    most_here = trace.experts_per_layer * (len(trace.layers) if pooled else 1)
    most_there = model.experts * (len(model.moe_layers) if pooled else 1)
    fewer, rest = divmod(slots * most_here, most_there)
    return fewer, min(fewer + 1, most_here), rest / most_there


def blend(fewer: Traffic, more: Traffic, weight: float) -> Traffic:
    """What lies between the traffic of two sizes, linear in every event's counts, to whole ones."""
    missed = _whole(fewer.missed * (1 - weight) + more.missed * weight)
    stored = _whole(fewer.stored * (1 - weight) + more.stored * weight)
    ratio = fewer.load_ratio * (1 - weight) + more.load_ratio * weight
    return replace(more, missed=missed, stored=np.minimum(stored, missed), load_ratio=ratio)


def carry_over(traffic: Traffic, trace: Trace, model: MoEModel) -> Traffic:
    """`traffic` of the recorded model as that of `model`, by method hit-ratio.

    Fractions of an expert are carried to the next step of the layer, so sums hold.
    """
    layers = by_depth(len(trace.layers), len(model.moe_layers))
    tokens = traffic.step_tokens
    here = even_router_distinct(trace.experts_per_layer, trace.top_k, tokens)
    there = even_router_distinct(model.experts, model.top_k, tokens)
    needed = _whole(traffic.needed[layers] / here * there)
    needed = np.clip(needed, 0, model.experts)
    missed = np.minimum(_whole(needed * _ratio(traffic.missed, traffic.needed)[layers]), needed)
    stored = np.minimum(_whole(missed * _ratio(traffic.stored, traffic.missed)[layers]), missed)
    return replace(traffic, needed=needed, missed=missed, stored=stored)


def by_depth(here: int, there: int) -> NDArray[np.int64]:
    """[there] ordinal of the recorded layer at the same relative depth."""
    return np.rint(np.linspace(0, here - 1, there)).astype(np.int64)


def _ratio(part: Counts, whole: Counts) -> NDArray[np.float64]:
    return part / np.maximum(whole, 1)


def _whole(values: NDArray[np.float64]) -> Counts:
    """[layers, steps] whole numbers with the running sums of `values`, to half of one."""
    sums = np.floor(np.cumsum(values, axis=1) + 0.5)
    return np.diff(sums, axis=1, prepend=0).astype(np.int64)


def _shape(shape: tuple[int, int, int]) -> str:
    layers, experts, top_k = shape
    return f"{layers} MoE layers of {experts} experts, top-{top_k}"
