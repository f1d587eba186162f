"""moeprof's projection as a predictor on trial: its laws fitted anew on the rows it is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.calibration import Measured, calibrate_laws
from moeprof.projection.closed_loop import (
    Traffic,
    loop_of,
    running_of,
    steady_batch,
    token_amounts,
)
from moeprof.projection.holding import running_limit
from moeprof.projection.laws import FAMILIARITIES, Laws, familiarity, shipped_laws
from moeprof.projection.laws import Band as Ends
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.speed import project_speed
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.pooled import PooledLaw
from moeprof.projection.step.work import work_of
from moeprof.projection.table_row import row_deployment, row_traffic

from .pooling import fit_law
from .priors import FIRST_TOKEN, STEP
from .rows import ServedRow, moe_rows
from .splits import Split, calibrated_splits, leave_one_out, seeded_splits
from .trial import Band, Forecast, Judged, blank

NESTED = ("served", "stack", "model", "gpu", "stranger")

Array = NDArray[np.float64]

_SOURCE = (
    "InferenceX runs as carried by aiconfigurator-core 0.12.0 (Apache-2.0), and single reports "
    "of MiniMax-M3 and others (benchmarks/data)"
)


class Case(NamedTuple):
    """A row as the law sees it."""

    groups: Mapping[str, str]
    amounts: Array  # of a step with one whole prompt beside it, one a term
    running: float
    parallelism: Parallelism
    traffic: Traffic

    @property
    def token(self) -> Array:
        """Amounts of one output token."""
        return token_amounts(self.amounts, self.traffic, self.running, self.parallelism)

    def waits(self, law: PooledLaw) -> Array:
        """Of a first token, one a term of its law."""
        constants = law.constants(self.groups)
        loop = loop_of(constants, self.amounts, self.traffic, self.running, self.parallelism)
        return loop.ttft_amounts


@cache
def case_of(row: ServedRow) -> Case:
    """Independent of what was measured."""
    deployment, traffic = row_deployment(_words(row)), row_traffic(_words(row))
    running = running_of(traffic, running_limit(deployment, traffic))
    batch = steady_batch(traffic, running, deployment.parallelism)
    amounts = work_of(deployment).amounts(batch)
    return Case(groups_of(deployment), amounts, running, deployment.parallelism, traffic)


def fit_laws(rows: Sequence[ServedRow]) -> Laws:
    """The two laws of `rows`, without bands."""
    cases = [case_of(blank(row)) for row in rows]
    groups = [case.groups for case in cases]
    step = fit_law(
        STEP, np.array([case.token for case in cases]), groups, _seconds(rows, "tpot_ms")
    )
    timed = [place for place, row in enumerate(rows) if row.ttft_ms]
    first = fit_law(
        FIRST_TOKEN,
        np.array([cases[place].waits(step) for place in timed]),
        [groups[place] for place in timed],
        _seconds([rows[place] for place in timed], "ttft_ms"),
    )
    return Laws(step, first, {}, _SOURCE)


def with_bands(laws: Laws, rows: Sequence[ServedRow], names: Collection[str]) -> Laws:
    """`laws` with bands for the familiarities `names`, from rows of `rows` held out so far off.

    Of `NESTED` a band is never narrower than that of anything nearer: few GPUs and models can be
    left out, and how far off the next one is, they hardly tell.
    """
    nested = NESTED[: 1 + max((NESTED.index(name) for name in names if name in NESTED), default=-1)]
    bands: dict[str, dict[str, Ends]] = {"tpot": {}, "ttft": {}}
    for name in dict.fromkeys([*nested, *names]):
        for what, found in zip(("tpot", "ttft"), _ratios(_distant(rows, name)), strict=True):
            if len(found):
                bands[what][name] = Ends(*np.exp(np.quantile(found, (0.1, 0.9))).tolist())
    for found in bands.values():
        _widen([name for name in nested if name in found], found)
    return replace(laws, bands=bands)


def _widen(names: Sequence[str], bands: dict[str, Ends]) -> None:
    for nearer, name in pairwise(names):
        bands[name] = Ends(
            min(bands[nearer].low, bands[name].low), max(bands[nearer].high, bands[name].high)
        )


def with_reports(rows: Sequence[ServedRow], reports: Sequence[ServedRow]) -> Laws:
    """The laws of `rows` and `reports` together, their bands, and what reports alone know.

    A report is one run by one source; its band is that of reports predicted without their source.
    """
    laws = with_bands(fit_laws([*rows, *reports]), rows, set(FAMILIARITIES) - {"reported"})
    splits = [
        split._replace(train=[*rows, *split.train])
        for split in leave_one_out(reports, lambda row: row.source)
    ]
    ratios = zip(("tpot", "ttft"), _ratios(splits), strict=True)
    ends = {what: Ends(*np.exp(np.quantile(found, (0.1, 0.9))).tolist()) for what, found in ratios}
    bands = {what: {**laws.bands[what], "reported": ends[what]} for what in ends}
    return replace(laws, bands=bands, reported=frozenset(_named(reports) - _named(rows)))


def _named(rows: Sequence[ServedRow]) -> set[str]:
    """GPUs and models of `rows`."""
    groups = [case_of(blank(row)).groups for row in rows]
    return {each[level] for each in groups for level in ("gpu", "model")}


class Projection:
    """Fits laws and bands on the rows given, and predicts as `moeprof project --table` does."""

    laws: Laws

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """Forget what was fitted before."""
        self.rows = list(rows)
        self.laws = fit_laws(rows)

    def calibrate(self, rows: Sequence[ServedRow]) -> None:
        """Correct the fit by a user's own rows."""
        self.laws = _calibrated(self.laws, rows)

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """One forecast a row."""
        near = {familiarity(self.laws, case_of(row).groups) for row in rows}
        self.laws = with_bands(self.laws, self.rows, sorted(near))
        return [self._forecast(row) for row in rows]

    def _forecast(self, row: ServedRow) -> Forecast:
        words = _words(row)
        speed = project_speed(row_deployment(words), row_traffic(words), laws=self.laws)
        tpot, ttft = speed.tpot_ms, speed.ttft_ms
        return Forecast(
            Band(tpot.value, tpot.low, tpot.high), Band(ttft.value, ttft.low, ttft.high)
        )


class Bare(Projection):
    """Without bands, which take many fits."""

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """One value a row."""
        times = [_predicted_s(self.laws, row) for row in rows]
        return [Forecast(Band(1e3 * token), Band(1e3 * first)) for first, token in times]


def judge_calibrated(splits: Sequence[Split]) -> list[Judged]:
    """Every judging row of splits that calibrate; `split.name` up to a comma is the system.

    The band of a system's rows is that of the other systems' residuals.
    """
    laws, said, ratios = {}, [], {}
    for split in splits:
        system = split.name.split(",")[0]
        if system not in laws:
            laws = {system: fit_laws(split.train)}
        own = _calibrated(laws[system], split.calibration)
        times = [_predicted_s(own, row) for row in split.test]
        said.append((system, split, times))
        found = [_logs(row, each) for row, each in zip(split.test, times, strict=True)]
        ratios.setdefault(system, []).extend(found)
    judged = []
    for system, split, times in said:
        others = [each for name, found in ratios.items() if name != system for each in found]
        (first_low, low), (first_high, high) = np.exp(np.quantile(others, (0.1, 0.9), axis=0))
        judged += [
            Judged(
                split.name,
                row,
                Forecast(
                    Band(1e3 * token, 1e3 * token * low, 1e3 * token * high),
                    Band(1e3 * first, 1e3 * first * first_low, 1e3 * first * first_high),
                ),
            )
            for row, (first, token) in zip(split.test, times, strict=True)
        ]
    return judged


def _logs(row: ServedRow, times: tuple[float, float]) -> tuple[float, float]:
    """Logarithms of measured over predicted (first token, token)."""
    assert row.ttft_ms and row.tpot_ms
    return np.log(row.ttft_ms / 1e3 / times[0]), np.log(row.tpot_ms / 1e3 / times[1])


class Shipped(Projection):
    """The laws that ship."""

    def __init__(self) -> None:
        self.laws = shipped_laws()

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """They are as they are."""

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        """One forecast a row."""
        return [self._forecast(row) for row in rows]


def _distant(rows: Sequence[ServedRow], name: str) -> list[Split]:
    """Splits of `rows` at one of `laws.FAMILIARITIES`."""
    if name == "served":
        splits = seeded_splits(rows, trained=0.8)
    elif name == "calibrated":
        splits = calibrated_splits(moe_rows(rows), _level("served"), seeds=range(3))
    elif name == "stranger":
        splits = _strangers(rows)
    else:
        splits = leave_one_out(rows, _level("served" if name == "stack" else name))
    return judged_on_experts(splits)


def judged_on_experts(splits: Sequence[Split]) -> list[Split]:
    """The splits with models of routed experts alone on the judging side.

    Dense models fit where they are not left out; of one alone nothing is learnt about leaving.
    """
    routed = [split._replace(test=moe_rows(split.test)) for split in splits]
    return [split for split in routed if split.test]


def _level(name: str) -> Callable[[ServedRow], str]:
    return lambda row: case_of(blank(row)).groups[name]


def _strangers(rows: Sequence[ServedRow]) -> list[Split]:
    """Every pair of GPU and model, predicted by rows of other GPUs and other models."""
    gpu, model = _level("gpu"), _level("model")
    splits = []
    for here, name in sorted({(gpu(row), model(row)) for row in rows}):
        train = [row for row in rows if gpu(row) != here and model(row) != name]
        test = [row for row in rows if gpu(row) == here and model(row) == name]
        if train:
            splits.append(Split(f"{here}, {name}", train, test))
    return splits


def _ratios(splits: Sequence[Split]) -> tuple[Array, Array]:
    """Logarithms of measured over predicted TPOT and TTFT, of all rows held out."""
    tpot: list[float] = []
    ttft: list[float] = []
    fitted: dict[frozenset[str], Laws] = {}
    for split in splits:
        key = frozenset(row.id for row in split.train)
        if key not in fitted:
            fitted = {key: fit_laws(split.train)}
        laws = _calibrated(fitted[key], split.calibration)
        for row in split.test:
            first, token = _predicted_s(laws, row)
            if row.tpot_ms:
                tpot.append(np.log(row.tpot_ms / 1e3 / token))
            if row.ttft_ms:
                ttft.append(np.log(row.ttft_ms / 1e3 / first))
    return np.array(tpot), np.array(ttft)


def _predicted_s(laws: Laws, row: ServedRow) -> tuple[float, float]:
    """(to the first token, a token)."""
    case = case_of(blank(row))
    return (
        float(case.waits(laws.step) @ laws.first_token.constants(case.groups)),
        float(case.token @ laws.step.constants(case.groups)),
    )


def _calibrated(laws: Laws, rows: Sequence[ServedRow]) -> Laws:
    return calibrate_laws(laws, [_measured(row) for row in rows]) if rows else laws


def _measured(row: ServedRow) -> Measured:
    words = _words(blank(row))
    assert row.tpot_ms and row.ttft_ms
    return Measured(row_deployment(words), row_traffic(words), row.tpot_ms / 1e3, row.ttft_ms / 1e3)


def _seconds(rows: Sequence[ServedRow], name: str) -> Array:
    return np.array([getattr(row, name) for row in rows], np.float64) / 1e3


def _words(row: ServedRow) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in asdict(row).items()}
