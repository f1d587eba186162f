"""A predictor put on trial: fitted on one side of each split, judged on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from .rows import ServedRow
from .splits import Split


class Band(NamedTuple):
    """A value in milliseconds, and the ends between which 80 % of measurements should lie."""

    value: float
    low: float | None = None
    high: float | None = None


class Forecast(NamedTuple):
    """What a predictor says of a row; None where it says nothing."""

    tpot_ms: Band | None
    ttft_ms: Band | None


class Predictor(Protocol):
    """Anything that learns from rows and then speaks of others, one forecast a row, in order."""

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """Forget what was fitted before and learn from these rows."""

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """Forecasts from each row's configuration and load; its measured times are not for use."""


class CalibratedPredictor(Predictor, Protocol):
    """One that can also take a few rows of the system that is asked about."""

    def calibrate(self, rows: Sequence[ServedRow]) -> None:
        """Correct the fit by a user's own rows; the next `fit` forgets them."""


class Judged(NamedTuple):
    """A row beside what was forecast of it without having seen it; `split` names the trial."""

    split: str
    row: ServedRow
    forecast: Forecast


def hold_out(predictor: Predictor, splits: Sequence[Split]) -> list[Judged]:
    """Every judging row of every split; splits with calibration rows need a CalibratedPredictor.

    Measured times are struck from the rows before they reach `predict`.
    """
    judged = []
    for split in splits:
        predictor.fit(split.train)
        if split.calibration:
            predictor.calibrate(split.calibration)  # type: ignore[attr-defined]
        said = predictor.predict([blank(row) for row in split.test])
        judged += [
            Judged(split.name, row, each) for row, each in zip(split.test, said, strict=True)
        ]
    return judged


def blank(row: ServedRow) -> ServedRow:
    """The row without what was measured."""
    return replace(row, ttft_ms=None, tpot_ms=None)
