"""Two JSON results: every number beside the other's, and bands where there are any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.comparison import compare_documents, measures_of, read_document
from moeprof.analysis.comparison.conditions import check_conditions
from moeprof.errors import InputError


def document(result: dict[str, Any], verb: str = "offload") -> dict[str, Any]:
    return {"schema": f"moeprof.{verb}/1", "result": result}


A = {
    "tok_s": 10.0,
    "tok_s_low": 9.0,
    "tok_s_high": 11.0,
    "tpot_ms": {"value": 5.0, "low": 4.0, "high": 6.0, "provenance": "fitted"},
    "rows": [{"policy": "lru", "slots": 8, "hits": 5}, {"policy": "lfu", "slots": 8, "hits": 6}],
    "layers": [1, 2],
    "fits": True,
    "old": 1,
}
B = {
    "tok_s": 20.0,
    "tok_s_low": 18.0,
    "tok_s_high": 22.0,
    "tpot_ms": {"value": 5.5, "low": 4.5, "high": 6.5, "provenance": "fitted"},
    "rows": [{"policy": "lfu", "slots": 8, "hits": 9}, {"policy": "lru", "slots": 8, "hits": 5}],
    "layers": [1, 2],
    "fits": False,
    "new": 1,
}


def test_numbers_bands_and_what_is_in_one_alone() -> None:
    result = compare_documents(document(A), document(B))
    found = {difference.metric: difference for difference in result.differences}
    speed, latency = found["tok_s"], found["tpot_ms"]
    assert (speed.effect, speed.low, speed.high, speed.relative) == (10, 7, 13, 1)
    assert speed.significant and not latency.significant
    assert (latency.low, latency.high) == (-1.5, 2.5)
    # Entries stand for each other by policy and slots, in whatever order.
    assert found["rows[policy=lfu,slots=8].hits"].effect == 3
    assert found["rows[policy=lru,slots=8].hits"].effect == 0
    assert [(x.metric, x.a, x.b) for x in result.changed] == [("fits", True, False)]
    assert (result.only_a, result.only_b) == (["old"], ["new"])


def test_documents_of_other_commands_are_refused() -> None:
    with pytest.raises(InputError, match="results of one command"):
        compare_documents(document(A), document(B, "place"))
    with pytest.raises(InputError, match="no number in common"):
        compare_documents(document({"a": 1}), document({"b": 1}))


def test_what_is_no_document_is_not_read(tmp_path: Path) -> None:
    for name, text in (("a.json", "{"), ("b.json", "[1]"), ("c.json", '{"schema": 1}')):
        (tmp_path / name).write_text(text)
        assert read_document(tmp_path / name) is None
    assert read_document(tmp_path) is None
    (tmp_path / "d.json").write_text(json.dumps(document(A)))
    assert read_document(tmp_path / "d.json") == document(A)


@pytest.mark.parametrize(
    ("expression", "failed"),
    [
        ("tok_s > 50%", ["tok_s > 50%"]),
        ("tok_s > 150%", []),
        ("tok_s>=10 and tpot_ms < 1", ["tok_s >= 10 and tpot_ms < 1"]),
        ("tok_s < 0 or tpot_ms > 1e-1", ["tpot_ms > 0.1"]),
        ("tpot_ms > 0 and significant", []),
        ("tok_s > 0 and significant", ["tok_s > 0 and significant"]),
        ("significant", ["significant"]),
        ("rows[policy=lfu,slots=8].hits > 2", ["rows[policy=lfu,slots=8].hits > 2"]),
    ],
)
def test_conditions(expression: str, failed: list[str]) -> None:
    measures = measures_of(compare_documents(document(A), document(B)))
    assert check_conditions(expression, measures) == failed


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("speed > 3", "no metric 'speed' here; there are tok_s, tpot_ms"),
        ("tok_s > fast", "'fast' is not a number"),
        ("tok_s 5", "'tok_s 5' is not METRIC > NUMBER"),
        ("tok_s > 1 and", "'' is not METRIC"),
        ("", "'' is not METRIC"),
        ("tok_s > 1; import os", "cannot read '; import os'"),
        ("__import__('os')", "is not METRIC"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(expression: str, named: str) -> None:
    measures = measures_of(compare_documents(document(A), document(B)))
    with pytest.raises(InputError) as refused:
        check_conditions(expression, measures)
    assert named in str(refused.value) and "\n" not in str(refused.value)
