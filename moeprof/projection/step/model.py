"""Seconds of a step: the amounts of its work times the constants of its deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.deployment import Deployment
from moeprof.projection.step.batch import Batch
from moeprof.projection.step.loads import ExpertLoads
from moeprof.projection.step.pooled import PooledLaw
from moeprof.projection.step.terms import OPERATIONS, TERMS, Phase
from moeprof.projection.step.work import Work, work_of

_DECODES = np.array([term.phase is Phase.DECODE for term in TERMS])


@dataclass(frozen=True)
class StepModel:
    """Predicts the steps of one deployment; `step_model` makes one.

    `constants` holds one number a term (docs/projection.md); `loads` says which experts steps read,
    those of even routing where it is None.
    """

    work: Work
    constants: NDArray[np.float64] = field(hash=False)
    loads: ExpertLoads | None = None

    @property
    def deployment(self) -> Deployment:
        """What this is a model of."""
        return self.work.deployment

    def term_seconds(self, batch: Batch) -> NDArray[np.float64]:
        """Seconds a term (`TERMS`), [terms]."""
        return self.constants * self.work.amounts(batch, self.loads)

    def seconds(self, batch: Batch) -> float:
        """Of one step on the busiest rank."""
        return float(self.term_seconds(batch).sum())

    def phase_seconds(self, batch: Batch) -> tuple[float, float]:
        """(of what the step takes without its prompt tokens, of what they add)."""
        terms = self.term_seconds(batch)
        return float(terms[_DECODES].sum()), float(terms[~_DECODES].sum())

    def operations(self, batch: Batch) -> Mapping[str, float]:
        """Seconds by operation (`OPERATIONS`), those that take none left out."""
        return by_operation(self.term_seconds(batch))

    def scaled(self, decode: float, prefill: float) -> StepModel:
        """The same model with all constants of a phase times a factor."""
        return replace(self, constants=self.constants * np.where(_DECODES, decode, prefill))


def step_model(
    deployment: Deployment, law: PooledLaw, groups: Mapping[str, str], loads: ExpertLoads | None
) -> StepModel:
    """The model of `deployment` under `law`."""
    return StepModel(work_of(deployment), law.constants(groups), loads)


def by_operation(term_seconds: NDArray[np.float64]) -> dict[str, float]:
    """Seconds a term, summed by operation."""
    found = dict.fromkeys(OPERATIONS, 0.0)
    for term, seconds in zip(TERMS, term_seconds, strict=True):
        found[term.operation] += float(seconds)
    return {name: seconds for name, seconds in found.items() if seconds > 0}
