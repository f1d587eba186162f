"""Two constants of a user's own system from a few of its measurements.

One scales what a step takes for its sequences, the other what prompts add. They are found where
the measurements and the laws' own doubt balance: the laws say how far a deployment of its kind was
off (normal priors on the logarithms), a measurement how far two runs of one deployment are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.projection.closed_loop import Traffic, closed_loop
from moeprof.projection.deployment import Deployment
from moeprof.projection.holding import running_limit
from moeprof.projection.laws import Laws, familiarity
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.model import StepModel, step_model

_SCALES = ("decode", "prefill")
# Standard deviations of logarithms: of a law's constant where a system was not seen (the bands of
# "gpu" and "model" over 1.28), and of the measured times of one deployment, runs and loads apart.
_DOUBT = np.array([0.25, 0.35])  # decode, prefill
_TOKEN_NOISE, _FIRST_TOKEN_NOISE = 0.06, 0.3
_BEND = 1.5  # residuals beyond so many deviations count linearly


@dataclass(frozen=True)
class Measured:
    """One run of a user's own: seconds a token, and to the first token where it was taken."""

    deployment: Deployment
    traffic: Traffic
    tpot_s: float
    ttft_s: float | None = None


@dataclass(frozen=True)
class _Run:
    measured: Measured
    model: StepModel
    limit: float | None
    waits: NDArray[np.float64]  # constants of the first token

    def residuals(self, logs: NDArray[np.float64]) -> list[float]:
        """In standard deviations, with phases scaled by exp(`logs`)."""
        decode, prefill = np.exp(logs)
        loop = closed_loop(self.model.scaled(decode, prefill), self.measured.traffic, self.limit)
        found = [np.log(loop.tpot_s / self.measured.tpot_s) / _TOKEN_NOISE]
        if self.measured.ttft_s:
            first = float(loop.ttft_amounts @ self.waits)
            found.append(np.log(first / self.measured.ttft_s) / _FIRST_TOKEN_NOISE)
        return found


def calibrate_laws(laws: Laws, measured: Sequence[Measured]) -> Laws:
    """`laws` with the two constants that `measured` tell, and the narrower bands of such laws.

    They hold for what was measured: a model, by an engine, in a format, on a generation of GPUs;
    each such group has its own, and nothing else changes. Raises InputError without a measurement.
    """
    if not measured:
        raise InputError("calibration needs at least one measurement, better 2 to 5")
    groups: dict[str, list[_Run]] = {}
    for each in measured:
        groups.setdefault(groups_of(each.deployment)["served"], []).append(_run(laws, each))
    factors = {
        group: dict(zip(_SCALES, np.exp(_solve(runs)).tolist(), strict=True))
        for group, runs in groups.items()
    }
    # What was served widely before is known better than a few runs can tell.
    told = [each for each in measured if familiarity(laws, groups_of(each.deployment)) != "served"]
    known = frozenset(groups_of(each.deployment)["served"] for each in told)
    return replace(laws, step=laws.step.with_factors("served", factors), calibrated=known)


def _run(laws: Laws, measured: Measured) -> _Run:
    groups = groups_of(measured.deployment)
    return _Run(
        measured,
        step_model(measured.deployment, laws.step, groups, None),
        running_limit(measured.deployment, measured.traffic),
        laws.first_token.constants(groups),
    )


def _solve(runs: Sequence[_Run], rounds: int = 20) -> NDArray[np.float64]:
    """Logarithms of the two factors, by Gauss-Newton steps with Huber's weights."""
    logs, nudge = np.zeros(2), 1e-4
    for _ in range(rounds):
        here = _residuals(runs, logs)
        slope = np.stack(
            [(_residuals(runs, logs + nudge * axis) - here) / nudge for axis in np.eye(2)], axis=1
        )
        weight = np.minimum(1, _BEND / np.maximum(np.abs(here), 1e-9))
        curvature = (slope * weight[:, None]).T @ slope + np.diag(_DOUBT**-2)
        gradient = slope.T @ (weight * here) + logs / _DOUBT**2
        step = np.clip(np.linalg.solve(curvature, -gradient), -0.5, 0.5)
        logs = logs + step
        if np.abs(step).max() < 1e-6:
            break
    return logs


def _residuals(runs: Sequence[_Run], logs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([each for run in runs for each in run.residuals(logs)])
