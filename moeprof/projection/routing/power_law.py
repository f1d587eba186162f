"""AIConfigurator's skew: tokens of experts drawn from a power law, anew for every step.

Rules of `_generate_power_law_distribution` (collector/helper.py of github.com/ai-dynamo/
aiconfigurator, Apache-2.0), by which the routings of its kernel tables were made: loads are drawn
with a density of x^-alpha between 1 and 0.8 tokens (0.01 and 2 where experts outnumber
assignments), scaled to all assignments and rounded; no expert has more than every token; what is
over or missing goes to the experts of each rank in turn that have least, or comes from those that
have most. The rank that is timed is the busiest. `power_law_1.01` is what it assumes of MiniMax-M3.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.replay import Share
from moeprof.projection.routing.curve import LoadCurve, read_curve
from moeprof.projection.routing.ranks import measure_ranks, neighbouring_experts
from moeprof.projection.routing.step_load import Floats, Shape, StepLoad, check_step
from moeprof.quantity import Provenance
from moeprof.trace import Phase

_STEPS = 512

Counts = NDArray[np.int64]


class PowerLawRouting:
    """AIConfigurator's routing by exponent. Layers and phases are alike.

    Raises InputError for an exponent outside 0 to 3.
    """

    def __init__(self, shape: Shape, alpha: float = 1.01) -> None:
        if not 0 <= alpha <= 3:  # also refuses NaN
            raise InputError(f"a power law of exponent {alpha}: 0 to 3 is needed")
        self.shape, self.alpha = shape, alpha
        self.name = f"power law {alpha:g}"

    def load(
        self, tokens: float, ranks: int, *, phase: Phase = Phase.DECODE, consecutive: int = 1
    ) -> StepLoad:
        """As `RoutingModel.load`."""
        check_step(self.shape, tokens, ranks, consecutive)
        source = f"tokens of experts by a power law of exponent {self.alpha:g}, as AIConfigurator's"
        nothing = StepLoad.nothing(self.shape, ranks, Provenance.ASSUMED, source)
        return read_curve(nothing, tokens, lambda: _curve(*self.shape[1:], ranks, self.alpha))


@lru_cache(maxsize=256)
def _curve(experts: int, top_k: int, ranks: int, alpha: float) -> LoadCurve:
    shape, placement = Shape(1, experts, top_k), neighbouring_experts(1, experts, ranks)
    few = experts // top_k  # up to here assignments do not outnumber experts: another law

    def sample(tokens: int) -> Floats:
        rng = np.random.default_rng([experts, top_k, tokens])
        counts = power_law_counts(shape, tokens, ranks, alpha, _STEPS, rng)
        return measure_ranks(counts, placement, 0, Share.EQUAL)[:, None]

    return LoadCurve(shape, ranks, sample, limits=(few,))


def power_law_counts(
    shape: Shape, tokens: int, ranks: int, alpha: float, steps: int, rng: np.random.Generator
) -> Counts:
    """[steps, experts] tokens of each expert; every row sums to tokens x k.

    Where ranks do not divide the experts, what is over or missing is levelled over all of them.
    """
    whole = tokens * shape.top_k
    ends = (1.0, 0.8 * tokens) if whole > shape.experts else (0.01, 2.0)
    loads = _inverse(rng.random((steps, shape.experts)), alpha, *ends)
    counts = np.rint(loads / loads.sum(axis=1, keepdims=True) * whole).astype(np.int64)
    groups = ranks if shape.experts % ranks == 0 else 1
    grouped = counts.reshape(steps, groups, -1)
    over = np.maximum(grouped - tokens, 0).sum(axis=(1, 2))
    grouped = _raise_lowest(np.minimum(grouped, tokens), over, tokens)
    missing = whole - grouped.sum(axis=(1, 2))
    grouped = _raise_lowest(grouped, np.maximum(missing, 0), tokens)
    grouped = -_raise_lowest(-grouped, np.maximum(-missing, 0), 0)
    return grouped.reshape(steps, -1)


def _inverse(uniform: Floats, alpha: float, least: float, most: float) -> Floats:
    """x between `least` and `most` below which a share `uniform` of x^-alpha lies."""
    if alpha == 1:
        return np.asarray(least * (most / least) ** uniform)
    power = 1 - alpha
    return np.asarray(((most**power - least**power) * uniform + least**power) ** (1 / power))


def _raise_lowest(counts: Counts, amount: Counts, most: int) -> Counts:
    """`counts` [steps, groups, n] with `amount` [steps] more, a unit to each group in turn.

    In a group a unit goes to the lowest; a group whose counts are all `most` takes none.
    """
    counts, left = counts.copy(), amount.copy()
    while left.any():
        room = (most - counts).sum(axis=2)
        turn = np.cumsum(room > 0, axis=1)
        # Rounds in which no group becomes full before the last; then what is less than a round.
        rounds = np.minimum(
            left // np.maximum(turn[:, -1], 1), np.where(room > 0, room, left.max()).min(axis=1)
        )
        part = (turn <= left[:, None]).astype(np.int64)
        given = np.where(room > 0, np.where(rounds[:, None] > 0, rounds[:, None], part), 0)
        counts = _filled(counts, given)
        left -= given.sum(axis=1)
    return counts


def _filled(counts: Counts, given: Counts) -> Counts:
    """[..., n] with `given` [...] more in each, all of it where counts are lowest."""
    ordered = np.sort(counts, axis=-1)
    sizes = np.arange(1, counts.shape[-1] + 1)
    levels = (np.cumsum(ordered, axis=-1) + given[..., None]) // sizes
    # Filled up to where the level no longer reaches the next one.
    reached = np.maximum((levels >= ordered).sum(axis=-1, keepdims=True) - 1, 0)
    level = np.take_along_axis(levels, reached, axis=-1)
    filled = np.maximum(counts, level)
    over = given - (filled - counts).sum(axis=-1)
    at_level = filled == level
    extra = at_level & (np.cumsum(at_level, axis=-1) <= over[..., None])
    return np.asarray(filled + extra)
