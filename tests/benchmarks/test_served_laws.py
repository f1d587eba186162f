"""The laws that ship and the page that judges them are of the rows that stand beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.served.predictor import Shipped, case_of
from benchmarks.served.reports import report_rows
from benchmarks.served.rows import load_rows, moe_rows, without_copies
from benchmarks.served.scores import score_tpot, score_ttft
from benchmarks.served.trial import Judged, blank
from moeprof.projection import FAMILIARITIES, shipped_laws

PAGE = Path(__file__).parents[2] / "docs" / "validation" / "served.md"


def test_the_shipped_laws_know_every_group_of_the_rows_and_have_every_band() -> None:
    laws = shipped_laws()
    for row in without_copies(load_rows())[::7]:
        groups = case_of(blank(row)).groups
        assert all(laws.step.knows(level, group) for level, group in groups.items())
    for what in ("tpot", "ttft"):
        assert set(laws.bands[what]) == set(FAMILIARITIES)
        assert all(band.low < 1 < band.high for band in laws.bands[what].values())


def test_the_shipped_laws_give_back_what_they_were_fitted_to() -> None:
    rows = moe_rows(without_copies(load_rows()))[::6]
    said = Shipped().predict([blank(row) for row in rows])
    judged = [Judged("", row, each) for row, each in zip(rows, said, strict=True)]
    assert score_tpot(judged).median < 0.06
    assert score_ttft(judged).median < 0.2
    assert score_tpot(judged).spearman > 0.97


def test_the_page_is_of_these_rows() -> None:
    rows, page = without_copies(load_rows()), PAGE.read_text()
    configurations = {row.configuration for row in rows}
    assert f"{len(rows)} measured rows of {len(configurations)} configurations" in page
    assert f"{len(report_rows())} reports of one run each" in page


def test_a_draft_that_stops_by_itself_is_counted_by_what_is_accepted() -> None:
    row = next(row for row in load_rows("m3_serving") if "dspark" in row.draft)
    traffic = case_of(blank(row)).traffic
    assert traffic.draft_tokens == np.ceil(traffic.accepted) == 2
