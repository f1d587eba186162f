"""compare and analyze pruning as they are typed: exit codes, what is said, what JSON holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moeprof.cli.main import main
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, synthesize_rows
from tests.conftest import save

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def two(tmp_path: Path, model: MoEModel) -> tuple[str, str]:
    """A recording, and another of the same tokens with two in five of them routed elsewhere."""
    rows, requests = synthesize_rows(model, 1200, requests=24)
    a = save(tmp_path / "a.moetrace", model, rows, requests)
    experts = rows.experts.copy()
    experts[np.random.default_rng(0).random(1200) < 0.4] = [0, 1, 2]
    changed = TokenRows(**{**vars(rows), "experts": experts})
    return str(a), str(save(tmp_path / "b.moetrace", model, changed, requests))


def test_the_answer_comes_first_and_fits(two: tuple[str, str], capsys: Captured) -> None:
    assert main(["compare", *two, "--same-tokens"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("B routes more unevenly: mean_imbalance ")
    assert "that both recorded (as asked" in out and f"moeprof compare {two[0]}" in out
    assert all(len(line) <= 100 for line in out.splitlines() if not line.startswith("Next"))


def test_json_and_exit_codes(two: tuple[str, str], capsys: Captured) -> None:
    assert main(["compare", *two, "--json", "--fail-on", "mean_imbalance > 5%"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "moeprof.compare/1" and len(document["inputs"]) == 2
    keys = {"metric", "a", "b", "low", "high", "significant"}
    assert all(keys <= difference.keys() for difference in document["result"]["differences"])
    assert document["result"]["failed"] == ["mean_imbalance > 5%"]
    assert main(["compare", two[0], two[0], "--fail-on", "significant", "--quiet"]) == 0
    assert main(["compare", *two, "--fail-on", "speed > 1", "--quiet"]) == 2
    assert "there are mean_imbalance, gini" in capsys.readouterr().err
    assert main(["compare", two[0]]) == 2
    assert "takes two at least" in capsys.readouterr().err


def test_three_are_checkpoints(two: tuple[str, str], capsys: Captured) -> None:
    order = [two[1], two[0], two[0]]
    assert main(["compare", *order, "--fail-on", "saturation < 90%", "--quiet"]) == 3
    out = capsys.readouterr().out
    assert "were chosen by the first already" in " ".join(out.split()) and "100 %" in out
    assert "FAILED: saturation < 90%." in out


def test_the_figure(two: tuple[str, str], tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "figures"
    assert main(["compare", *two, "--png", str(folder)]) == 0
    assert f"wrote {folder / 'comparison-layers.png'}" in capsys.readouterr().err
    drawn = (folder / "comparison-layers.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and len(drawn) > 20_000
    assert main(["compare", *two, "--png", str(folder)]) == 2
    assert "not overwritten without --force" in capsys.readouterr().err
    assert main(["compare", *two, "--png", str(folder), "--force", "--quiet"]) == 0
    assert (folder / "comparison-layers.png").read_bytes() == drawn
    assert [path.name for path in folder.iterdir()] == ["comparison-layers.png"]


def test_two_documents(two: tuple[str, str], tmp_path: Path, capsys: Captured) -> None:
    files = []
    for place, trace in enumerate(two):
        assert main(["analyze", "load", trace, "--json"]) == 0
        files.append(tmp_path / f"{place}.json")
        files[-1].write_text(capsys.readouterr().out)
    assert main(["compare", *map(str, files)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("moeprof.analyze.load/1: ") and "per_layer[layer=1].gini" in out
    assert main(["compare", str(files[0]), two[0]]) == 2
    assert "not both" in capsys.readouterr().err


def test_pruning(saved: Callable[..., Path], capsys: Captured) -> None:
    trace = str(saved(1200, requests=12, skew=1.5))
    assert main(["analyze", "pruning", trace]) == 0
    out = capsys.readouterr().out
    assert "experts of each layer could go" in out and "Experts to adapt" in out
    assert all(len(line) <= 100 for line in out.splitlines() if not line.startswith("Next"))
    assert main(["analyze", "pruning", trace, "--keep", "8", "--domain", "a", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["suggested"]["kept"] == 8 and len(result["pruned"][0]["experts"]) == 8
    assert main(["analyze", "pruning", trace, "--keep", "1"]) == 2
