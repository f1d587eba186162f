"""Grids: what a point is, the same bytes however it is computed, interrupts, and the front."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.projection import project_deployment
from moeprof.projection.pareto import pareto_front
from moeprof.sweep import AXES, Grid, dask_executor, make_grid, process_executor, sweep_grid
from moeprof.sweep.run import RUN_POINTS

AXES_OF_TEST: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "hardware": ["2xh100-sxm", "1xrtx-4090"],
    "tp": [1, 2],
    "concurrency": [1, 3, 8, 20, 50, 100],
    "input_len": [100, 1000],
    "output_len": 50,
}


@pytest.fixture
def grid() -> Grid:
    return make_grid(AXES_OF_TEST)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_is_the_product_of_its_axes(grid: Grid) -> None:
    points = [grid.point(number) for number in range(len(grid))]
    found = [(p["hardware"], p["tp"], p["input_len"], p["concurrency"]) for p in points]
    expected = product(["2xh100-sxm", "1xrtx-4090"], [1, 2], [100, 1000], [1, 3, 8, 20, 50, 100])
    assert found == list(expected)
    assert all(list(point) == list(AXES) for point in points)


def test_each_row_is_what_project_says(grid: Grid, tmp_path: Path) -> None:
    done = sweep_grid(grid, tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    assert len(rows) == done.points == 24
    for row in rows[::7]:
        lone = project_deployment(
            "olmoe-1b-7b", row["hardware"], tp=int(row["tp"]), output_len=50,
            concurrency=int(row["concurrency"]), input_len=int(row["input_len"]),
        )  # fmt: skip
        assert lone.tpot_ms and lone.output_tok_s and lone.output_tok_s.high
        assert float(row["tpot_ms"]) == pytest.approx(lone.tpot_ms.value, rel=1e-5)
        assert float(row["output_high_tok_s"]) == pytest.approx(lone.output_tok_s.high, rel=1e-5)
        gpus = 2 if row["hardware"].startswith("2x") else 1
        assert float(row["tok_s_per_gpu"]) == pytest.approx(
            lone.output_tok_s.value / gpus, rel=1e-5
        )
        assert row["fits"] == str(lone.fits).lower()
    assert done.failed == 24
    assert done.reasons == {
        "tp 1 x dp 1 x pp 1 leaves 1 of 2 GPUs idle": 12,
        "tp 2 x dp 1 needs 2 GPUs, not 1": 12,
    }


def test_the_bytes_do_not_depend_on_workers(grid: Grid, tmp_path: Path) -> None:
    alone = sweep_grid(grid, tmp_path / "alone.csv")
    with ThreadPoolExecutor(3) as threads:
        sweep_grid(grid, tmp_path / "threads.csv", executor=threads)
    with process_executor(2) as processes:
        spawned = sweep_grid(grid, tmp_path / "spawned.csv", executor=processes)
    assert (tmp_path / "threads.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert (tmp_path / "spawned.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert spawned.pareto == alone.pareto
    assert not list(tmp_path.glob("*.partial"))


def test_parquet_holds_the_same_rows(grid: Grid, tmp_path: Path) -> None:
    sweep_grid(grid, tmp_path / "out.csv")
    sweep_grid(grid, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for one, other in zip(rows_of(tmp_path / "out.csv"), table, strict=True):
        assert list(one) == list(other)
        assert float(one["ttft_high_ms"]) == other["ttft_high_ms"]
        assert one["usd_per_million_tokens"] == (
            "" if (usd := other["usd_per_million_tokens"]) is None else str(usd)
        )


class StopSweepError(Exception):
    """What a progress function raises in the middle of a sweep."""


@pytest.mark.parametrize("cut", [0, 5])
def test_an_interrupted_sweep_goes_on(grid: Grid, tmp_path: Path, cut: int) -> None:
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    sweep_grid(grid, whole)

    def stop(done: int, of: int) -> None:
        if done == 2 * RUN_POINTS:
            raise StopSweepError

    with pytest.raises(StopSweepError):
        sweep_grid(grid, output, progress=stop)
    draft = tmp_path / "out.csv.partial"
    assert draft.exists() and not output.exists()
    draft.write_bytes(draft.read_bytes()[: -cut or None])  # as a full disk or a crash leaves it
    with pytest.raises(InputError, match="--resume goes on"):
        sweep_grid(grid, output)
    with pytest.raises(InputError, match="another grid"):
        sweep_grid(make_grid({**AXES_OF_TEST, "tp": 1}), output, resume=True)
    seen: list[int] = []
    sweep_grid(grid, output, resume=True, progress=lambda done, of: seen.append(done))
    assert seen[0] == (2 * RUN_POINTS if cut else 3 * RUN_POINTS)
    assert output.read_bytes() == whole.read_bytes()
    assert not draft.exists()


def test_ctrl_c_ends_with_130_and_leaves_a_draft(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    lengths = list(range(100, 5000))
    grid.write_text(f'model = "olmoe-1b-7b"\nhardware = "1xh100-sxm"\ninput_len = {lengths}\n')
    command = [sys.executable, "-m", "moeprof", "sweep", str(grid), "-o", str(tmp_path / "o.csv")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    draft = tmp_path / "o.csv.partial"
    while not (draft.exists() and draft.read_text().count("\n") > 1):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.splitlines()[-1] == "moeprof: interrupted"
    assert "Traceback" not in complaint
    assert draft.exists() and not (tmp_path / "o.csv").exists()


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


@given(pairs)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] >= other[0] and one[1] >= other[1] and one != other

    front = pareto_front(points, lambda each: each)
    slow = {each for each in points if not any(beats(other, each) for other in points)}
    assert set(front) == slow and len(front) == len(slow)


def test_the_front_of_a_sweep_compares_like_with_like(grid: Grid, tmp_path: Path) -> None:
    done = sweep_grid(grid, tmp_path / "out.csv")
    fitting = [row for row in rows_of(tmp_path / "out.csv") if row["fits"] == "true"]
    assert done.fitting == len(fitting)
    speeds = ("tok_s_per_user", "tok_s_per_gpu")
    for length in ("100", "1000"):
        rows = [row for row in fitting if row["input_len"] == length]
        front = [row for row in done.pareto if str(row["input_len"]) == length]
        values = {tuple(float(row[name]) for name in speeds) for row in rows}
        best = {v for v in values if not any(o != v and o[0] >= v[0] and o[1] >= v[1]
                                             for o in values)}  # fmt: skip
        assert {tuple(row[name] for name in speeds) for row in front} == best


BAD = {
    "mdoel = 'a'": "'mdoel' is no axis of a grid, did you mean 'model'?",
    "hardware = '8xh200'": "the grid names no model",
    "model = 'minimax-m3'\nhardware = '8xh200'\ntp = [0]": "tp = 0: a whole number of at least 1",
    "model = 'minimax-m3'\nhardware = '8xh200'\ntp = true": "tp = True: a whole number",
    "model = 'minimax-m3'\nhardware = '8xh200'\naccepted = nan": "accepted = nan: a number",
    "model = 'minimax-m3'\nhardware = '8xh200'\nconcurrency = []": "concurrency has no value",
    "model = 'minimax-m3'\nhardware = [8]": "hardware = 8: a name in quotes",
    "model = 'minimax-m3'\nhardware = '8xh999'": "h999",
    "model = 'minimax-m3'\nhardware = '8xh200'\nengine = 'vlm'": "engine 'vlm' is not one of",
    "model = ": "not a TOML file",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_grid_gets_one_clear_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.toml").write_text(text)
    assert main(["sweep", str(tmp_path / "grid.toml"), "-o", str(tmp_path / "o.csv")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "grid.toml: " in lines[0] and BAD[text] in lines[0]
    assert not (tmp_path / "o.csv").exists()


@pytest.fixture
def grid_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "grid.toml"
    path.write_text("model = 'minimax-m3'\nhardware = ['8xh200']\nprecision = 'mxfp8'\ntp = [3, 8]")
    yield path


def test_the_command_answers(grid_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = grid_file.with_name("o.csv")
    command = ["sweep", str(grid_file), "--output", str(output), "--quiet"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "moeprof.sweep/1"
    result = document["result"]
    assert (result["points"], result["failed"]) == (1, 1)
    assert [row["tp"] for row in result["pareto"]] == [8]
    assert main(command) == 2  # it exists
    assert main([*command, "--force"]) == 0
    assert "Pareto front, 1 deployment" in capsys.readouterr().out


def test_what_cannot_be_written_is_refused_first(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv or \.parquet"):
        sweep_grid(grid, tmp_path / "out.txt")
    with pytest.raises(InputError, match="no folder"):
        sweep_grid(grid, tmp_path / "none" / "out.csv")
    with pytest.raises(InputError, match="at least 1"):
        process_executor(0)


def test_without_dask_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'moeprof\[dask\]'"):
        dask_executor("tcp://localhost:1")
