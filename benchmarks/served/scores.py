"""How far forecasts are from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .trial import Band, Judged


class Score(NamedTuple):
    """Errors as fractions of what was measured; NaN where there is nothing to say.

    `rows`: those both measured and forecast. `coverage`: the share of them inside their bands, of
    those that have one. `width`: the median of high over low.
    """

    rows: int
    median: float
    mean: float
    p90: float
    bias: float  # median of predicted over measured, less 1
    spearman: float
    coverage: float
    width: float


def score_tpot(judged: Sequence[Judged]) -> Score:
    """Of milliseconds a token."""
    return score([(each.row.tpot_ms, each.forecast.tpot_ms) for each in judged])


def score_ttft(judged: Sequence[Judged]) -> Score:
    """Of milliseconds to the first token."""
    return score([(each.row.ttft_ms, each.forecast.ttft_ms) for each in judged])


def score(pairs: Sequence[tuple[float | None, Band | None]]) -> Score:
    """Measured beside forecast; pairs that lack either do not count."""
    from scipy.stats import spearmanr

    both = [(real, band) for real, band in pairs if real is not None and band is not None]
    if not both:
        return Score(0, *[float("nan")] * (len(Score._fields) - 1))
    real = np.array([each for each, _ in both])
    ratio = np.array([band.value for _, band in both]) / real
    error = np.abs(ratio - 1)
    varied = len(set(real)) > 1 and len(set(ratio * real)) > 1
    ended = [(each, band.low, band.high) for each, band in both if band.low and band.high]
    inside = [low <= each <= high for each, low, high in ended]
    widths = [high / low for _, low, high in ended]
    return Score(
        len(both),
        float(np.median(error)),
        float(error.mean()),
        float(np.quantile(error, 0.9)),
        float(np.median(ratio) - 1),
        float(spearmanr(real, ratio * real).statistic) if varied else float("nan"),
        float(np.mean(inside)) if inside else float("nan"),
        float(np.median(widths)) if widths else float("nan"),
    )


def grouped(judged: Sequence[Judged], group_of: Callable[[Judged], str]) -> dict[str, list[Judged]]:
    """Judged rows by the name of their group, names in order."""
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        groups.setdefault(group_of(each), []).append(each)
    return dict(sorted(groups.items()))


def worst(judged: Sequence[Judged], count: int = 10) -> list[Judged]:
    """The rows whose TPOT was missed by the largest factor, first the worst."""
    known = [each for each in judged if each.row.tpot_ms and each.forecast.tpot_ms]
    return sorted(known, key=_miss, reverse=True)[:count]


def _miss(each: Judged) -> float:
    assert each.forecast.tpot_ms and each.row.tpot_ms
    return float(abs(np.log(each.forecast.tpot_ms.value / each.row.tpot_ms)))
