"""What the MoE kernel of one layer does on one rank: which experts it reads, for how many rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.model.moe_model import MoEModel

Floats = NDArray[np.float64]
_SLACK = 1e-6  # averages of many draws carry rounding


@dataclass(frozen=True)
class ExpertShape:
    """Routed experts of a layer: three matrices of hidden x intermediate, `top_k` of `experts`."""

    hidden: int
    intermediate: int
    experts: int
    top_k: int

    @classmethod
    def of(cls, model: MoEModel) -> ExpertShape:
        """The routed experts of `model`. Raises InputError for a dense one."""
        shape = cls(model.hidden_size, model.expert_intermediate_size, model.experts, model.top_k)
        if min(shape.hidden, shape.intermediate, shape.experts, shape.top_k) < 1:
            raise InputError(f"{model.name}: has no routed experts, so no MoE kernel runs")
        return shape


M3_SHAPE = ExpertShape(hidden=6144, intermediate=3072, experts=128, top_k=4)


@dataclass(frozen=True)
class RankWork:
    """The work of one rank, arrays of one shape [points]; averages over steps may be fractions.

    `tokens` are those of the step on all ranks of the EP group, which the kernel is handed;
    `distinct` the experts of this rank that get a row, `load` its (token, expert) pairs, `busiest`
    the rows of its fullest expert. `cached` is the share of the weights' reading time that a kernel
    saves which is run again and again: 0 in an engine, but tables were timed so (`tables.py`).
    """

    shape: ExpertShape
    tp: Floats
    ep: Floats
    tokens: Floats
    distinct: Floats
    load: Floats
    busiest: Floats
    cached: Floats

    @classmethod
    def of(
        cls,
        shape: ExpertShape,
        tokens: ArrayLike,
        distinct: ArrayLike,
        load: ArrayLike,
        *,
        tp: ArrayLike = 1,
        ep: ArrayLike = 1,
        busiest: ArrayLike | None = None,
    ) -> RankWork:
        """The work with all arrays broadcast to one shape; `busiest` None is a skewed routing.

        Raises InputError, naming the field, on values that no routing can have.
        """
        skewed = 2 * np.asarray(load, float) / np.maximum(np.asarray(distinct, float), 1)
        fields = (tp, ep, tokens, distinct, load, skewed if busiest is None else busiest, 0)
        try:
            arrays = np.broadcast_arrays(*(np.asarray(field, float) for field in fields))
        except ValueError:
            raise InputError("tokens, distinct and load: shapes that do not go together") from None
        work = cls(shape, *arrays)
        work._check()
        return work

    def _check(self) -> None:
        _refuse(~(self.tp >= 1) | ~(self.ep >= 1), "tp and ep", "at least 1", self.tp)
        _refuse(~(self.tokens >= 0) | ~np.isfinite(self.tokens), "tokens", ">= 0", self.tokens)
        experts = np.ceil(self.shape.experts / self.ep)
        for name, most, why in (
            ("distinct", experts, "the rank's experts"),
            ("load", self.tokens * self.shape.top_k, "tokens x top_k"),
        ):
            values: Floats = getattr(self, name)
            wrong = ~(values >= 0) | (values > most * (1 + _SLACK))
            _refuse(wrong, name, f"from 0 to {why}", values)
        short = self.load < self.distinct * (1 - _SLACK)
        _refuse(short, "load", "at least distinct: each expert that is read has a row", self.load)

    def at(self, *index: Any) -> RankWork:
        """The points at an index, or a mask, of the arrays."""
        arrays = {name: value[index] for name, value in vars(self).items() if name != "shape"}
        return RankWork(self.shape, **arrays)

    @property
    def rank_experts(self) -> Floats:
        """Experts that a rank holds."""
        return self.shape.experts / self.ep

    @property
    def width(self) -> Floats:
        """Intermediate columns of an expert on one rank: tensor parallelism cuts them."""
        return self.shape.intermediate / self.tp

    @property
    def skew(self) -> Floats:
        """0 where all experts that are read have equal rows, 1 where the fullest has twice that."""
        mean = self.load / np.maximum(self.distinct, 1)
        rise: Floats = np.clip(self.busiest / np.maximum(mean, 1) - 1, 0, 1)
        return rise


def _refuse(wrong: Any, name: str, limits: str, values: Floats) -> None:
    if np.any(wrong):
        raise InputError(f"{name} must be {limits}, not {values[wrong].flat[0]:g}")
