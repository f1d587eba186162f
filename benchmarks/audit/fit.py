"""Constants that fit runs, each source left out in turn, and bands that hold unseen ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, hypot, log
from typing import NamedTuple

import numpy as np

from .prediction import Case, Cases, Constants, case_of, gather, inputs_of, speeds_of
from .runs import Run

START = Constants(0.6, 5e-5, 1e-4, 2e-3, 5e-5)
LOW = Constants(0.1, 1e-5, 1e-5, 1e-4, 1e-6)
HIGH = Constants(1.0, 1e-3, 2e-3, 2e-2, 1e-3)
ROBUST = 0.3  # log errors beyond it count linearly, not squared
COVERED = 0.8


class Seen(NamedTuple):
    """A run with the speed predicted and, in log speed, how far its open inputs move that."""

    run: Run
    case: Case
    tok_s: float
    spread: float

    @property
    def log_error(self) -> float:
        """log of predicted over published."""
        return log(self.tok_s / self.run.tok_s)


class HeldOut(NamedTuple):
    """A run predicted by constants that its source had no part in; the band is tok_s */ factor."""

    seen: Seen
    factor: float

    @property
    def covered(self) -> bool:
        """Whether the band holds the published speed."""
        return abs(self.seen.log_error) <= log(self.factor)


class Width(NamedTuple):
    """Half width in log speed: `scale` times the root of `floor` and spread squared."""

    floor: float
    scale: float

    def factor(self, spread: float) -> float:
        """By which a speed is multiplied and divided."""
        return exp(self.scale * hypot(self.floor, spread))


def fit_constants(runs: Sequence[Run]) -> Constants:
    """Least squares of log speeds, robust, to two digits."""
    from scipy.optimize import least_squares

    groups, published = _middles(runs), np.log([run.tok_s for run in runs])
    found = least_squares(
        lambda logs: np.log(speeds_of(groups, Constants(*np.exp(logs)))) - published,
        np.log(START),
        bounds=(np.log(LOW), np.log(HIGH)),
        loss="soft_l1",
        f_scale=ROBUST,
        diff_step=1e-4,
    )
    return Constants(*(float(f"{value:.2g}") for value in np.exp(found.x)))


def predict(runs: Sequence[Run], constants: Constants) -> list[Seen]:
    """Speeds at the middle of every input; the ends of each alone make the spread."""
    speeds = np.log(speeds_of(_middles(runs), constants))
    squares = np.zeros(len(runs))
    for which in range(len(inputs_of(runs[0]))):
        ends = [np.log(speeds_of(_at(runs, which, end), constants)) for end in (1, 2)]
        squares += ((ends[1] - ends[0]) / 2) ** 2
    middles = [case_of(run, _values(run)) for run in runs]
    return [Seen(*row) for row in zip(runs, middles, np.exp(speeds), np.sqrt(squares), strict=True)]


def hold_out(runs: Sequence[Run]) -> list[HeldOut]:
    """Every run, by constants and a band from the own speeds of the other sources alone.

    The band is nested: of each other source the errors are those of constants fitted without it
    as well.
    """
    sources = list(dict.fromkeys(run.source for run in runs))
    fits: dict[frozenset[str], Constants] = {}

    def without(*left_out: str) -> Constants:
        key = frozenset(left_out)
        if key not in fits:
            fits[key] = fit_constants(
                [run for run in runs if run.source not in key and not run.baseline]
            )
        return fits[key]

    found: dict[int, HeldOut] = {}
    for source in sources:
        errors = [
            seen
            for other in sources
            if other != source
            for seen in predict(_own(runs, other), without(source, other))
        ]
        width = calibrate(errors)
        places = [i for i, run in enumerate(runs) if run.source == source]
        seen = predict([runs[i] for i in places], without(source))
        found |= {
            i: HeldOut(one, width.factor(one.spread)) for i, one in zip(places, seen, strict=True)
        }
    return [found[i] for i in range(len(runs))]


def _own(runs: Sequence[Run], source: str) -> list[Run]:
    return [run for run in runs if run.source == source and not run.baseline]


def calibrate(unseen: Sequence[Seen]) -> Width:
    """The width that holds COVERED of runs predicted unseen, and one more."""
    size = np.array([abs(seen.log_error) for seen in unseen])
    spread = np.array([seen.spread for seen in unseen])
    floor = float(np.median(size))
    level = min(1.0, COVERED * (1 + 1 / len(size)))
    return Width(floor, float(np.quantile(size / np.hypot(floor, spread), level)))


def widen(constants: Constants, end: str, factor: float) -> Constants:
    """Constants at the slow or fast end of a band of */ `factor`; no efficiency passes 1."""
    by = {"slow": 1 / factor, "middle": 1.0, "fast": factor}[end]
    cpu, *seconds = constants
    return Constants(min(1.0, cpu * by), *(each / by for each in seconds))


def constants_factor(runs: Sequence[Run]) -> float:
    """The band of fitted constants, */, with which the law's own ends (all slow, all fast) hold
    COVERED of the runs whose budget is stated, each held out with its source. One digit.
    """
    own = [run for run in runs if not run.baseline]
    known = [run for run in own if not run.budget.imputed]
    fits = {
        source: fit_constants([run for run in own if run.source != source])
        for source in {run.source for run in known}
    }
    factor = 1.0
    while factor < 10:
        held = [_between_ends(run, fits[run.source], factor) for run in known]
        if np.mean(held) >= COVERED:
            break
        factor = round(factor + 0.1, 1)
    return factor


def _between_ends(run: Run, constants: Constants, factor: float) -> bool:
    groups = _middles([run])
    slow, fast = (
        float(speeds_of(groups, widen(constants, end, factor), end)[0]) for end in ("slow", "fast")
    )
    return slow <= run.tok_s <= fast


def _values(run: Run) -> list[float]:
    return [band.value for band in inputs_of(run)]


def _middles(runs: Sequence[Run]) -> list[Cases]:
    return gather(runs, [case_of(run, _values(run)) for run in runs])


def _at(runs: Sequence[Run], which: int, end: int) -> list[Cases]:
    """All inputs in the middle but one, which is at the low (1) or high (2) end of its band."""
    cases = []
    for run in runs:
        values = _values(run)
        band = inputs_of(run)[which]
        values[which] = band.low if end == 1 else band.high
        cases.append(case_of(run, values))
    return gather(runs, cases)
