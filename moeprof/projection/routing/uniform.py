"""Even, independent routing: the null that every other routing is compared to."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.placement.replay import Share
from moeprof.projection.routing.curve import LoadCurve, read_curve
from moeprof.projection.routing.ranks import measure_ranks, neighbouring_experts
from moeprof.projection.routing.step_load import (
    Floats,
    Shape,
    StepLoad,
    check_step,
    even_scale,
)
from moeprof.quantity import Provenance
from moeprof.trace import Phase

_TOKEN_DRAWS = 32_768  # tokens drawn for one number of tokens
_STEPS = (16, 512)  # fewest and most steps
_SETS = 256  # tokens up to which each token's set is drawn; beyond, each expert's count
_SOURCE = "every token chooses its experts evenly and for itself: a stated model of routing"


def shape_of(model: MoEModel) -> Shape:
    """Layers, experts and top-k of `model`; no layers where it is dense."""
    return Shape(len(model.moe_layers), model.experts, model.top_k)


class UniformRouting:
    """Experts evenly and independently. Distinct experts are exact, what ranks get is sampled.

    All layers are alike, phases too, and consecutive tokens are independent as all others are.
    """

    name = "uniform"

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def load(
        self, tokens: float, ranks: int, *, phase: Phase = Phase.DECODE, consecutive: int = 1
    ) -> StepLoad:
        """As `RoutingModel.load`."""
        check_step(self.shape, tokens, ranks, consecutive)
        nothing = StepLoad.nothing(self.shape, ranks, Provenance.ASSUMED, _SOURCE)
        return read_curve(nothing, tokens, lambda: _curve(*self.shape[1:], ranks))


@lru_cache(maxsize=256)
def _curve(experts: int, top_k: int, ranks: int) -> LoadCurve:
    shape = Shape(1, experts, top_k)
    placement = neighbouring_experts(1, experts, ranks)

    def sample(tokens: int) -> Floats:
        rng = np.random.default_rng([experts, top_k, tokens])
        counts = even_counts(shape, tokens, steps_to_draw(tokens), rng)
        measured = measure_ranks(counts, placement, 0, Share.EQUAL)
        measured[4] *= tokens * top_k * len(counts) / counts.sum()
        measured[:2] = even_scale(shape, ranks, tokens)[:2]  # known exactly
        return measured[:, None]

    return LoadCurve(shape, ranks, sample)


def steps_to_draw(tokens: int) -> int:
    """More of small steps, which differ more."""
    return min(max(_TOKEN_DRAWS // tokens, _STEPS[0]), _STEPS[1])


def even_counts(
    shape: Shape, tokens: int, steps: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """[steps, experts] tokens of each expert.

    Beyond a few hundred tokens an expert's count is drawn for itself, binomial as it is in truth;
    that counts of a step sum to tokens x k then holds on average only.
    """
    experts, top_k = shape.experts, shape.top_k
    if tokens > _SETS or top_k == experts:
        return rng.binomial(tokens, top_k / experts, (steps, experts))
    keys = rng.random((steps * tokens, experts), np.float32)
    chosen = np.argpartition(keys, top_k - 1, axis=1)[:, :top_k]
    return count_experts(chosen.reshape(steps, -1), experts)


def count_experts(ids: NDArray[np.integer], experts: int) -> NDArray[np.int64]:
    """[steps, experts] how often each id is in a row of `ids` [steps, assignments].

    Raises TraceError where an id is none of the experts.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < experts:
        raise TraceError(
            f"the recording holds expert ids {ids.min()} to {ids.max()}, of a model with {experts} "
            "experts: moeprof validate names the rows"
        )
    steps = len(ids)
    flat = ids.astype(np.int64) + experts * np.arange(steps)[:, None]
    counts = np.bincount(flat.ravel(), minlength=steps * experts)
    return counts.reshape(steps, experts)
