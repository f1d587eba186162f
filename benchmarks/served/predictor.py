"""moeprof's projection as a predictor on trial: its laws fitted anew on the rows it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.closed_loop import (
    FIRST_TOKEN_TERMS,
    first_token_amounts,
    steady_batch,
    token_amounts,
)
from moeprof.projection.laws import Band as Ends
from moeprof.projection.laws import Laws
from moeprof.projection.holding import running_limit
from moeprof.projection.speed import project_speed
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.pooled import PooledLaw
from moeprof.projection.step.work import work_of
from moeprof.projection.table_row import row_deployment, row_traffic

from .pooling import fit_law
from .priors import FIRST_TOKEN, STEP
from .rows import ServedRow
from .splits import Split, leave_one_out, seeded_splits
from .trial import Band, Forecast

_SOURCE = "InferenceX runs as carried by aiconfigurator-core 0.12.0, Apache-2.0"


class Case(NamedTuple):
    """A row as the law sees it."""

    groups: Mapping[str, str]
    amounts: NDArray[np.float64]  # of one output token, one a term
    running: float


@cache
def case_of(row: ServedRow) -> Case:
    """Independent of what was measured."""
    deployment, traffic = row_deployment(_words(row)), row_traffic(_words(row))
    limit = running_limit(deployment, traffic)
    running = float(traffic.concurrency if limit is None else min(traffic.concurrency, limit))
    batch = steady_batch(traffic, running, deployment.parallelism.dp)
    step = work_of(deployment).amounts(batch)
    return Case(groups_of(deployment), token_amounts(step, traffic, running), running)


def fit_laws(rows: Sequence[ServedRow]) -> Laws:
    """The two laws of `rows`, without bands."""
    cases = [case_of(_blank(row)) for row in rows]
    groups = [case.groups for case in cases]
    step = fit_law(
        STEP, np.array([case.amounts for case in cases]), groups, _seconds(rows, "tpot_ms")
    )
    waits = np.array([_first_token(step, row, case) for row, case in zip(rows, cases, strict=True)])
    first = fit_law(FIRST_TOKEN, waits, groups, _seconds(rows, "ttft_ms"))
    return Laws(step, first, {}, _SOURCE)


def with_bands(laws: Laws, rows: Sequence[ServedRow]) -> Laws:
    """`laws` with bands from rows of `rows` held out at every distance."""
    bands: dict[str, dict[str, Ends]] = {"tpot": {}, "ttft": {}}
    for name, splits in _distances(rows).items():
        ratios = [_ratios(split) for split in splits]
        for what, place in (("tpot", 0), ("ttft", 1)):
            found = np.concatenate([each[place] for each in ratios])
            bands[what][name] = Ends(*np.exp(np.quantile(found, (0.1, 0.9))).tolist())
    return Laws(laws.step, laws.first_token, bands, laws.source)


class Projection:
    """Fits laws and bands on the rows given, and predicts as `moeprof project --table` does."""

    laws: Laws

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """Forget what was fitted before."""
        self.laws = with_bands(fit_laws(rows), rows)

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """One forecast a row."""
        return [self._forecast(row) for row in rows]

    def _forecast(self, row: ServedRow) -> Forecast:
        words = _words(row)
        speed = project_speed(row_deployment(words), row_traffic(words), laws=self.laws)
        tpot, ttft = speed.tpot_ms, speed.ttft_ms
        return Forecast(
            Band(tpot.value, tpot.low, tpot.high), Band(ttft.value, ttft.low, ttft.high)
        )


def _distances(rows: Sequence[ServedRow]) -> dict[str, list[Split]]:
    """Splits of `rows` at each of `laws.FAMILIARITIES`."""
    level: Callable[[str], Callable[[ServedRow], str]] = lambda name: (
        lambda row: case_of(_blank(row)).groups[name]
    )
    both = lambda row: (level("gpu")(row), level("model")(row))
    strangers = []
    for gpu, model in sorted({both(row) for row in rows}):
        train = [row for row in rows if gpu != both(row)[0] and model != both(row)[1]]
        test = [row for row in rows if (gpu, model) == both(row)]
        if train:
            strangers.append(Split(f"{gpu}, {model}", train, test))
    return {
        "served": seeded_splits(rows),
        "stack": leave_one_out(rows, level("served")),
        "gpu": leave_one_out(rows, level("gpu")),
        "model": leave_one_out(rows, level("model")),
        "stranger": strangers,
    }


def _ratios(split: Split) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of measured over predicted TPOT and TTFT, of the rows held out."""
    laws = fit_laws(split.train)
    tpot, ttft = [], []
    for row in split.test:
        case = case_of(_blank(row))
        tpot.append(float(case.amounts @ laws.step.constants(case.groups)))
        waits = _first_token(laws.step, row, case)
        ttft.append(float(waits @ laws.first_token.constants(case.groups)))
    return (
        np.log(_seconds(split.test, "tpot_ms") / tpot),
        np.log(_seconds(split.test, "ttft_ms") / ttft),
    )


def _first_token(law: PooledLaw, row: ServedRow, case: Case) -> NDArray[np.float64]:
    seconds = case.amounts * law.constants(case.groups)
    return first_token_amounts(seconds, row_traffic(_words(row)), case.running, row.dp)


def _seconds(rows: Sequence[ServedRow], name: str) -> NDArray[np.float64]:
    return np.array([getattr(row, name) for row in rows], np.float64) / 1e3


def _blank(row: ServedRow) -> ServedRow:
    from .trial import blank

    return blank(row)


def _words(row: ServedRow) -> dict[str, str]:
    from dataclasses import asdict

    return {name: str(value) for name, value in asdict(row).items()}
