"""What the experts of every MoE layer are asked for in one step: the answer of a routing model.

A layer is done when its slowest rank is, so what counts is the busiest rank of every layer in turn:
means over steps of maxima over ranks, to be summed over layers, never the maximum of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.chance import even_router_distinct
from moeprof.errors import InputError
from moeprof.quantity import Provenance
from moeprof.result import Result
from moeprof.trace import Phase

Floats = NDArray[np.float64]

# (tokens of a step, distinct experts that the busiest rank reads, its assignments) -> seconds, of a
# layer or, with means over layers, of a whole step: whoever takes one says which.
Seconds = Callable[[float, float, float], float]


class Shape(NamedTuple):
    """What routing models of one kind of model share."""

    layers: int  # MoE layers
    experts: int
    top_k: int


# The fields that are compared to even routing, in the order of `even_scale`.
COMPARED = (
    "distinct",
    "mean_distinct",
    "most_distinct",
    "busiest_distinct",
    "busiest_assignments",
    "hottest_tokens",
)


@dataclass(frozen=True, eq=False)
class StepLoad(Result):
    """One step of `tokens` on `ranks` that share the experts. Arrays: [layers], means over steps.

    A rank reads an expert that any token of the step sends to it, once. `most_distinct` is what the
    rank that reads most has to read, `busiest_distinct` what the rank with most assignments reads:
    the first bounds a step that waits for weights. On one rank both are `distinct`.
    """

    shape: Shape
    ranks: int
    tokens: float
    distinct: Floats  # experts that the step uses, over all ranks
    mean_distinct: Floats  # that a rank reads: more than distinct / ranks where replicas are read
    most_distinct: Floats
    busiest_distinct: Floats
    busiest_assignments: Floats  # of the rank with most
    hottest_tokens: Floats  # of the expert with most
    provenance: Provenance = Provenance.ASSUMED
    source: str = field(default="", compare=False)

    @classmethod
    def nothing(cls, shape: Shape, ranks: int, provenance: Provenance, source: str) -> StepLoad:
        """A step of no tokens."""
        none = np.zeros(shape.layers)
        return cls(shape, ranks, 0, none, none, none, none, none, none, provenance, source)

    @property
    def mean_assignments(self) -> float:
        """Of a rank, the same in every layer: a token is assigned to k experts."""
        return self.tokens * self.shape.top_k / self.ranks

    @property
    def imbalance(self) -> float:
        """Assignments that a step waits for, layer by layer, over what they are when even."""
        if not self.tokens or not len(self.busiest_assignments):
            return 1.0
        return float(self.busiest_assignments.mean() / self.mean_assignments)

    def seconds(self, of_layer: Seconds) -> float:
        """Of all MoE layers, one after the other, each as its busiest rank has it."""
        return sum(
            of_layer(self.tokens, distinct, assignments)
            for distinct, assignments in zip(
                self.most_distinct.tolist(), self.busiest_assignments.tolist(), strict=True
            )
        )

    def mean_seconds(self, of_step: Seconds) -> float:
        """Of one step, as a function of means over its layers."""
        if not len(self.most_distinct):
            return of_step(self.tokens, 0.0, 0.0)
        distinct, assignments = self.most_distinct.mean(), self.busiest_assignments.mean()
        return of_step(self.tokens, float(distinct), float(assignments))


class RoutingModel(Protocol):
    """Where tokens go. `name` says it in a word or two."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def shape(self) -> Shape:
        """Of the model that it routes."""

    def load(
        self, tokens: float, ranks: int, *, phase: Phase = Phase.DECODE, consecutive: int = 1
    ) -> StepLoad:
        """A step of `tokens` on `ranks`: of requests that each decode `consecutive` tokens, or of
        prompts, whose tokens follow one another. Raises InputError on numbers that make no sense.
        """


def even_scale(shape: Shape, ranks: int, tokens: float) -> Floats:
    """[COMPARED] what even and independent routing would come to, were every rank the mean one."""
    distinct = float(even_router_distinct(shape.experts, shape.top_k, tokens))
    each = distinct / ranks
    assignments = tokens * shape.top_k
    return np.array([distinct, each, each, each, assignments / ranks, assignments / shape.experts])


def compared_fields(load: StepLoad) -> Floats:
    """[COMPARED, layers]."""
    return np.stack([getattr(load, name) for name in COMPARED])


def with_fields(load: StepLoad, values: Floats) -> StepLoad:
    """`load` with `values` [COMPARED, layers], kept within what is possible."""
    named: dict[str, Any] = dict(zip(COMPARED, _possible(load, values), strict=True))
    return replace(load, **named)


def _possible(load: StepLoad, values: Floats) -> Floats:
    """No more than all experts and tokens there are; no maximum below its mean."""
    assignments = load.tokens * load.shape.top_k
    experts = min(float(load.shape.experts), assignments)
    distinct, mean, most, busiest, share, hottest = values
    return np.stack(
        [
            np.minimum(distinct, experts),
            np.minimum(mean, experts),
            np.clip(most, np.minimum(mean, experts), experts),
            np.minimum(busiest, experts),
            np.clip(share, assignments / load.ranks, assignments),
            np.clip(hottest, assignments / load.shape.experts, load.tokens),
        ]
    )


def check_step(shape: Shape, tokens: float, ranks: int, consecutive: int) -> None:
    """Raise InputError, naming it, for a number that no step has."""
    if not 0 <= tokens < float("inf"):
        raise InputError(f"a step of {tokens} tokens: 0 or more are needed")
    if ranks < 1:
        raise InputError(f"{ranks} ranks share the experts: there is at least one")
    if shape.layers and ranks > shape.experts:
        raise InputError(
            f"{ranks} ranks for {shape.experts} experts: each holds one at least, so give no more "
            "ranks than experts, or a placement with redundant ones"
        )
    if consecutive < 1:
        raise InputError(f"{consecutive} consecutive tokens a request: there is at least one")


def mixed_load(first: StepLoad, second: StepLoad) -> StepLoad:
    """A step of two kinds of tokens, as decode beside a chunk of a prompt.

    Distinct experts are taken to be chosen independently by the two; assignments are the sum of the
    two busiest ranks', which is the most that they can come to. Raises InputError where the two are
    not of the same layers, experts and ranks.
    """
    if (first.shape, first.ranks) != (second.shape, second.ranks):
        raise InputError("two parts of a step are of the same model and ranks")
    if not first.tokens or not second.tokens:
        return first if first.tokens else second
    experts, rank = float(first.shape.experts), first.shape.experts / first.ranks
    a, b = compared_fields(first), compared_fields(second)
    pools = np.array([experts, rank, rank, rank])[:, None]
    pools = np.maximum(pools, np.maximum(a[:4], b[:4]))
    values = np.concatenate([a[:4] + b[:4] - a[:4] * b[:4] / pools, a[4:] + b[4:]])
    weaker = max(first.provenance, second.provenance, key=lambda provenance: provenance.rank)
    sources = "; ".join(dict.fromkeys((first.source, second.source)))
    tokens = first.tokens + second.tokens
    return with_fields(replace(first, tokens=tokens, provenance=weaker, source=sources), values)
