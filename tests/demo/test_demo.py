"""The demo from end to end, on the weights that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.cli.main import main
from moeprof.trace import Phase, open_trace, validate_trace


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="needs the extra 'capture'")
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--output", str(folder), "--quiet", "--json"]) == 0
    return folder


def test_the_recording_is_sound_and_labelled(demo: Path) -> None:
    assert validate_trace(demo / "tiny-m3.moetrace").problems == []
    trace = open_trace(demo / "tiny-m3.moetrace")
    assert trace.tokens > 5_000
    assert len(trace.labels) >= 6
    assert set(trace.phase.tolist()) == {Phase.PREFILL, Phase.DECODE}


def test_the_page_says_that_the_model_is_not_m3(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "not of minimax-m3" in page
    assert len(page.encode()) < 2_000_000


def test_a_demo_is_not_overwritten(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(demo)]) == 2
    assert "will not be overwritten without --force" in capsys.readouterr().err


def test_the_weights_are_small_enough_to_ship() -> None:
    folder = Path(__file__).parents[2] / "moeprof" / "demo" / "tiny_m3"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "minimax_m3_vl_text"
