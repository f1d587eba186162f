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
from moeprof.projection.step.terms import OPERATIONS, TERM_NAMES, TERMS, Phase
from moeprof.projection.step.timed_experts import TimedExperts, timed_experts
from moeprof.projection.step.work import Work, work_of
from moeprof.quantity import Provenance

_EXPERTS, _PREFILL_EXPERTS, _PREFILL_READ = (
    TERM_NAMES.index(name) for name in ("experts", "prefill_experts", "prefill_read")
)
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
    timed: TimedExperts | None = None  # where kernels of this shape were timed

    @property
    def deployment(self) -> Deployment:
        """What this is a model of."""
        return self.work.deployment

    def amounts(self, batch: Batch) -> NDArray[np.float64]:
        """What `constants` multiply to seconds, one a term (`TERMS`)."""
        amounts = self.work.amounts(batch, self.loads)
        if self.timed is not None:
            decoding = batch.decode * (1 + batch.draft_tokens) * self.deployment.parallelism.dp
            decode = self.timed(decoding)
            amounts[_EXPERTS] = decode / self.constants[_EXPERTS]
            if batch.prefill:
                beside = max(0.0, self.timed(decoding + batch.prefill) - decode)
                amounts[_PREFILL_EXPERTS] = beside / self.constants[_PREFILL_EXPERTS]
                amounts[_PREFILL_READ] = 0.0  # the table's times hold it
        return amounts

    def term_seconds(self, batch: Batch) -> NDArray[np.float64]:
        """Seconds a term (`TERMS`), [terms]."""
        return self.constants * self.amounts(batch)

    @property
    def provenance(self) -> Provenance:
        """The weakest that a time can have, by which experts steps are said to read."""
        return (self.loads or self.work.even).provenance

    def measured(self) -> frozenset[str]:
        """Operations whose time is from tables of the kernels themselves."""
        timed = (_EXPERTS, _PREFILL_EXPERTS) if self.timed is not None else ()
        return frozenset(TERMS[place].operation for place in timed)

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
    work = work_of(deployment)
    timed = timed_experts(deployment, loads or work.even)
    return StepModel(work, law.constants(groups), loads, timed)


def by_operation(term_seconds: NDArray[np.float64]) -> dict[str, float]:
    """Seconds a term, summed by operation."""
    found = dict.fromkeys(OPERATIONS, 0.0)
    for term, seconds in zip(TERMS, term_seconds, strict=True):
        found[term.operation] += float(seconds)
    return {name: seconds for name, seconds in found.items() if seconds > 0}
