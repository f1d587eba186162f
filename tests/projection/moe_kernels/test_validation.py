"""The committed constants and page are what the tables give: one small group computed anew."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))  # the benchmarks are no package that is installed

from benchmarks.kernel_fit.fitting import Timed, fit_law, timed_groups  # noqa: E402
from benchmarks.kernel_fit.judging import few_tokens, tokens_out  # noqa: E402
from benchmarks.kernel_fit.report import SHORT, miss  # noqa: E402
from moeprof.projection.moe_kernels import kernel_groups  # noqa: E402
from moeprof.projection.moe_kernels.law import law_seconds  # noqa: E402

GROUP = ("l40s", "vllm", "vllm_unquantizedfusedmoe_triton_tritonexperts", "bf16")


@pytest.fixture(scope="module")
def timed() -> Timed:
    return next(one for one in timed_groups() if one.group == GROUP)


def page_rows() -> list[list[str]]:
    page = (ROOT / "docs" / "validation" / "moe_kernels.md").read_text()
    label = f"{GROUP[0]} {GROUP[1]} {SHORT[GROUP[2]]} {GROUP[3]}"
    cells = [line.strip("|").split("|") for line in page.splitlines()]
    return [[x.strip() for x in row[1:]] for row in cells if row[0].strip() == label]


def test_page_has_the_errors_of_today(timed: Timed) -> None:
    law, table = tokens_out(timed)
    odd = few_tokens(timed)[1::2]
    tables, laws, _ = page_rows()
    assert [float(x) for x in tables[:3]] == pytest.approx(
        [miss(table[:, odd]), miss(table[:, ~odd]), miss(table)], abs=0.11
    )
    assert [float(x) for x in laws[:2]] == pytest.approx(
        [miss(law[:, odd]), miss(law[:, ~odd])], abs=0.11
    )
    assert miss(table) <= 4


def test_constants_are_those_of_the_fit(timed: Timed) -> None:
    shipped = next(g for g in kernel_groups() if (g.hardware, g.kernel) == (GROUP[0], GROUP[2]))
    fitted = fit_law(timed)
    seconds = [
        law_seconds(timed.kernel, constants, timed.peaks, timed.work)
        for constants in (shipped.constants, fitted)
    ]
    assert np.abs(np.log(seconds[0] / seconds[1])).max() < 0.01


def test_every_group_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "validation" / "moe_kernels.md").read_text()
    for one in kernel_groups():
        label = f"{one.hardware} {one.engine} {SHORT[one.kernel]} {one.dtype}"
        assert page.count(f"\n| {label} |") == 3
