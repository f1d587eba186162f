"""AIConfigurator's predictions of the rows, as it is shipped: a predictor that learns nothing."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache

import numpy as np

from .rows import DATA, ServedRow
from .trial import Band, Forecast

FILE = DATA / "aiconfigurator_served.csv"  # made by benchmarks/aiconfigurator_predict.py


class AIConfigurator:
    """What benchmarks/data/aiconfigurator_served.csv says, by row; it has no bands.

    `asked`, the first that has an answer: "row", with the number formats that the row states;
    "checkpoint", with those of the checkpoint; "hybrid", with gaps of its tables filled.
    """

    def __init__(self, *asked: str) -> None:
        self.asked = asked or ("row",)

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """Nothing: NVIDIA's constants and tables stand as they were published."""

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """Its answer for each row, None for what it refused."""
        said = {key: each for way in reversed(self.asked) for key, each in answers(way).items()}
        return [said.get(row.id, Forecast(None, None)) for row in rows]


@cache
def answers(asked: str = "row") -> dict[str, Forecast]:
    """Row id to AIConfigurator's forecast; rows it refused are not in it."""
    return {
        line["id"]: Forecast(Band(float(line["tpot_ms"])), Band(float(line["ttft_ms"])))
        for line in _lines()
        if line["asked"] == asked and not line["problem"]
    }


@cache
def refusals(asked: str = "row") -> dict[str, str]:
    """Row id to why AIConfigurator gave no answer."""
    return {
        line["id"]: line["problem"]
        for line in _lines()
        if line["asked"] == asked and line["problem"]
    }


@cache
def _lines() -> tuple[dict[str, str], ...]:
    with FILE.open(newline="") as file:
        return tuple(csv.DictReader(file))


class CalibratedAIConfigurator(AIConfigurator):
    """Its answers times one factor for each system and engine, fitted as ours are: a fairer peer.

    The factor is the median of measured over answered; the band holds the middle 80 % of the rows
    fitted. Systems with no row to fit take the factor and the band of all.
    """

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """Factors of TPOT and TTFT."""
        said = super().predict(rows)
        self.ratios: dict[str, list[tuple[float, float]]] = {}
        for row, each in zip(rows, said, strict=True):
            if each.tpot_ms and each.ttft_ms and row.tpot_ms and row.ttft_ms:
                ratio = (row.tpot_ms / each.tpot_ms.value, row.ttft_ms / each.ttft_ms.value)
                for name in (_system(row), ""):
                    self.ratios.setdefault(name, []).append(ratio)

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """Its answers, moved by the factor of their system and engine."""
        said = super().predict(rows)
        return [self._moved(row, each) for row, each in zip(rows, said, strict=True)]

    def _moved(self, row: ServedRow, said: Forecast) -> Forecast:
        ratios = np.array(self.ratios.get(_system(row), self.ratios[""]))
        bands = [
            band and Band(*(band.value * np.quantile(ratios[:, which], (0.5, 0.1, 0.9))))
            for which, band in enumerate(said)
        ]
        return Forecast(*bands)


def _system(row: ServedRow) -> str:
    return f"{row.hardware} {row.engine}"
