"""Fits a pooled law: means and the factors of every level, to logarithms of measurements.

The posterior mode under normal priors on the logarithms of all factors, with Huber's loss on the
residuals (some rows ran with speculation or a cold engine, and say so nowhere), by damped
Gauss-Newton steps. Deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.step.pooled import PooledLaw

Array = NDArray[np.float64]
Groups = Mapping[str, str]


@dataclass(frozen=True)
class Prior:
    """What is believed before a row is seen.

    `means` maps a term to (value, spread); `levels` maps a level to {term or scale: spread of its
    factors}. Spreads are standard deviations of logarithms. `noise` is that of one row, and beyond
    `bend` times it a residual counts linearly.
    """

    means: Mapping[str, tuple[float, float]]
    scales: Mapping[str, tuple[str, ...]]
    levels: Mapping[str, Mapping[str, float]]
    noise: float
    bend: float

    @property
    def terms(self) -> tuple[str, ...]:
        """In the order of the amounts' columns."""
        return tuple(self.means)


class _Factor(NamedTuple):
    level: str
    group: str
    name: str  # of a term or a scale
    spread: float


def fit_law(prior: Prior, amounts: Array, groups: Sequence[Groups], seconds: Array) -> PooledLaw:
    """The law of rows with `amounts` [rows, terms], groups and measured `seconds` [rows]."""
    factors = _factors(prior, groups)
    covers = np.array([_covers(prior, factor.name) for factor in factors])
    member = _members(factors, groups)
    start = np.log([value for value, _ in prior.means.values()])
    spreads = [spread for _, spread in prior.means.values()] + [f.spread for f in factors]
    problem = _Problem(
        amounts, np.log(seconds), member, covers, start, np.array(spreads) ** -2.0, prior
    )
    found = _minimise(problem)
    count = len(prior.terms)
    return PooledLaw(
        terms=prior.terms,
        scales=prior.scales,
        mean=dict(zip(prior.terms, np.exp(start + found[:count]).tolist(), strict=True)),
        levels=_named(prior, factors, np.exp(found[count:])),
    )


@dataclass(frozen=True)
class _Problem:
    amounts: Array
    target: Array  # log seconds
    member: Array  # [rows, factors], 1 where a factor applies
    covers: Array  # [factors, terms]
    start: Array
    precision: Array  # of every unknown: means, then factors
    prior: Prior

    def terms(self, unknown: Array) -> tuple[Array, Array]:
        """(log of the sum, share of each term), rows first."""
        count = len(self.start)
        logs = self.start + unknown[:count] + self.member @ (self.covers * unknown[count:, None])
        parts = self.amounts * np.exp(logs)
        whole = parts.sum(axis=1)
        return np.log(whole), parts / whole[:, None]

    def residuals(self, logs: Array) -> Array:
        return (logs - self.target) / self.prior.noise

    def cost(self, unknown: Array) -> float:
        size = np.abs(self.residuals(self.terms(unknown)[0]))
        bend = self.prior.bend
        loss = np.where(size < bend, size**2 / 2, bend * (size - bend / 2))
        return float(loss.sum() + (self.precision * unknown**2).sum() / 2)


def _minimise(problem: _Problem, rounds: int = 60) -> Array:
    unknown = np.zeros(len(problem.precision))
    cost, damping = problem.cost(unknown), 1e-3
    for _ in range(rounds):
        curvature, gradient = _normal(problem, unknown)
        before = cost
        for _ in range(12):
            damped = curvature + np.diag(damping * (np.diag(curvature) + 1))
            step = np.clip(np.linalg.solve(damped, -gradient), -1, 1)
            after = problem.cost(unknown + step)
            if after < cost:
                unknown, cost, damping = unknown + step, after, damping / 6
                break
            damping = max(8 * damping, 1e-6)
        if before - cost < 1e-2:
            break
    return unknown


def _normal(problem: _Problem, unknown: Array) -> tuple[Array, Array]:
    """(curvature, gradient) of the cost, Gauss-Newton with Huber's weights."""
    logs, shares = problem.terms(unknown)
    residual = problem.residuals(logs)
    weight = np.minimum(1, problem.prior.bend / np.maximum(np.abs(residual), 1e-9))
    slope = np.hstack([shares, problem.member * (shares @ problem.covers.T)])
    slope /= problem.prior.noise
    curvature = (slope * weight[:, None]).T @ slope + np.diag(problem.precision)
    gradient = slope.T @ (weight * residual) + problem.precision * unknown
    return curvature, gradient


def _factors(prior: Prior, groups: Sequence[Groups]) -> list[_Factor]:
    return [
        _Factor(level, group, name, spread)
        for level, spreads in prior.levels.items()
        for group in sorted({row[level] for row in groups if level in row})
        for name, spread in spreads.items()
    ]


def _covers(prior: Prior, name: str) -> list[float]:
    names = prior.scales.get(name, (name,))
    return [float(term in names) for term in prior.terms]


def _members(factors: Sequence[_Factor], groups: Sequence[Groups]) -> Array:
    return np.array([[float(row.get(f.level) == f.group) for f in factors] for row in groups])


def _named(
    prior: Prior, factors: Sequence[_Factor], values: Array
) -> dict[str, dict[str, dict[str, float]]]:
    named: dict[str, dict[str, dict[str, float]]] = {level: {} for level in prior.levels}
    for factor, value in zip(factors, values, strict=True):
        named[factor.level].setdefault(factor.group, {})[factor.name] = float(value)
    return named
