"""Constants that groups of deployments share in part.

Every deployment has a constant for each term: the mean of all, times a factor of its GPU, times one
of its engine, times one of its model, and so on through the levels that have seen it. What a level
has not seen is 1. So the constants of a deployment that was never measured are those of its nearest
relatives. (Partial pooling: Gelman and Hill, Data Analysis Using Regression and Multilevel Models,
2007, chapter 12.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Factors = Mapping[str, float]  # by term, or by scale: a name for several terms


@dataclass(frozen=True)
class PooledLaw:
    """Seconds as a sum of terms.

    `scales` maps a name to the terms that it multiplies. `levels` maps a level to its groups, and
    a group to the factors it adds to those of the other levels.
    """

    terms: tuple[str, ...]
    scales: Mapping[str, tuple[str, ...]] = field(hash=False)
    mean: Factors = field(hash=False)
    levels: Mapping[str, Mapping[str, Factors]] = field(hash=False)

    def constants(self, groups: Mapping[str, str]) -> NDArray[np.float64]:
        """One constant a term, of the deployment in `groups` (level -> group)."""
        found = np.array([self.mean[term] for term in self.terms])
        for level, group in groups.items():
            for name, factor in self.levels.get(level, {}).get(group, {}).items():
                found[self.covers(name)] *= factor
        return found

    def covers(self, name: str) -> NDArray[np.bool_]:
        """Mask over the terms that a factor called `name` multiplies."""
        names = self.scales.get(name, (name,))
        return np.array([term in names for term in self.terms])

    def with_factors(self, level: str, factors: Mapping[str, Factors]) -> PooledLaw:
        """This law with `factors` (group -> name -> factor) at `level`, times those it has."""
        groups = dict(self.levels.get(level, {}))
        for group, added in factors.items():
            known = groups.get(group, {})
            scaled = {name: known.get(name, 1.0) * factor for name, factor in added.items()}
            groups[group] = {**known, **scaled}
        return replace(self, levels={**self.levels, level: groups})

    def knows(self, level: str, group: str) -> bool:
        """Whether `group` of `level` was among the rows that the law was fitted on."""
        return group in self.levels.get(level, {})

    def to_dict(self) -> dict[str, Any]:
        """JSON types, four digits a factor."""
        return {
            "scales": {name: list(terms) for name, terms in self.scales.items()},
            "mean": _rounded(self.mean),
            "levels": {
                level: {group: _rounded(factors) for group, factors in sorted(groups.items())}
                for level, groups in self.levels.items()
            },
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PooledLaw:
        """The inverse of `to_dict`."""
        scales = {name: tuple(terms) for name, terms in plain["scales"].items()}
        return cls(tuple(plain["mean"]), scales, plain["mean"], plain["levels"])


def _rounded(factors: Factors) -> dict[str, float]:
    return {name: float(f"{factor:.4g}") for name, factor in factors.items()}
