"""Published memory of MiniMax-M3: every figure of a stated configuration within 2 %."""

from __future__ import annotations

import json

import pytest

from benchmarks.memory_rows import PAGE, TEXTS, MemoryRow, memory_rows, page
from tests.recordings import shared_folder

ROWS = memory_rows()


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.group == "stated"], ids=lambda row: f"{row.id}: {row.says}"
)
def test_weights_and_kv_of_stated_configurations(row: MemoryRow) -> None:
    assert abs(row.error) <= 0.02


def test_every_figure_is_shown_and_what_differs_says_why() -> None:
    assert {row.group for row in ROWS} == set(TEXTS)
    assert all(row.why for row in ROWS if row.group != "stated")
    assert all(row.source.startswith("https://") and row.measured > 0 for row in ROWS)


def test_the_page_is_what_the_rows_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python benchmarks/memory_rows.py --write"


def test_no_row_of_the_data_on_memory_is_left_out() -> None:
    folder = shared_folder()
    file = folder and folder.parent / "data" / "m3_measurements.json"
    if not file or not file.exists():
        pytest.skip("no shared/data beside the repository")
    rows = json.loads(file.read_text(encoding="utf-8"))
    keys = ("weights_gb_per_gpu", "weights_gb_per_node", "weights_gib", "kv_cache_tokens")
    ours = {row.id for row in ROWS}
    for row in rows:
        if row["kind"] == "memory" or any(key in row for key in keys):
            assert row["id"] in ours
