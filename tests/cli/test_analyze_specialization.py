"""The command: its contract, and text that fits a terminal with the answer first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moeprof.cli.main import main
from tests.recordings import SHIPPED


def test_json_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "specialization", str(SHIPPED), "--json", "--shuffles", "19"]) == 0
    document = json.loads(capsys.readouterr().out)
    result = document["result"]
    assert document["schema"] == "moeprof.analyze.specialization/1"
    assert result["domains"] == sorted(result["domains"])
    assert result["interval"]["low"] < result["specialization"] < result["interval"]["high"]
    assert result["null"] < result["specialization"] / 5
    assert result["interval"]["unit_of_resampling"] == "requests"


def test_text_says_the_answer_first_and_what_to_try_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["analyze", "specialization", str(SHIPPED), "--shuffles", "19"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("7 domains do use different experts:")
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith("Next: moeprof place mix")
    assert any("as often in" in line for line in lines)


def test_without_labels_it_says_what_still_can_be_asked(
    capsys: pytest.CaptureFixture[str], saved: Callable[..., Path]
) -> None:
    folder = saved(labels=("only",))
    assert main(["analyze", "specialization", str(folder)]) == 2
    assert "--no-domains" in capsys.readouterr().err
    assert main(["analyze", "specialization", str(folder), "--no-domains"]) == 0
    text = capsys.readouterr().out
    assert "Vocabulary: not told, token ids were not recorded" in text
    assert text.splitlines()[-1].startswith("Next: moeprof")
