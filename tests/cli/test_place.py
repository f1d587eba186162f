"""`moeprof place`: its keys, its plan, and one clear line for what cannot be placed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moeprof.cli.main import main
from moeprof.placement import SOLVERS, read_plan

Run = Callable[..., tuple[int, str, str]]
KEYS = {
    "imbalance_fit",
    "imbalance_test",
    "lower_bound",
    "duplicates",
    "physical_to_logical_map",
    "bytes_between_gpus_per_token",
    "bytes_between_nodes_per_token",
    "moved_slots",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def load(tmp_path: Path) -> Path:
    np.save(tmp_path / "load.npy", np.random.default_rng(0).integers(1, 99, (2, 16)))
    return tmp_path / "load.npy"


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_answers_with_every_key(
    run: Run, saved: Callable[..., Path], solver: str
) -> None:
    command = ("place", saved(), "--gpus", 4, "--nodes", 2, "--redundant", 4, "--solver", solver)
    command += ("--max-imbalance", 1.1)
    code, out, _ = run(*command, "--json")
    document = json.loads(out)
    assert code == 0 and document["schema"] == "moeprof.place/1"
    assert document["result"].keys() >= KEYS
    assert np.array(document["result"]["physical_to_logical_map"]).shape == (3, 20)
    assert document["result"]["bytes_between_nodes_per_token"] > 0
    again = json.loads(run(*command, "--json")[1])
    assert again["result"] == document["result"]
    code, out, _ = run(*command)
    assert code == 0 and "no map is below" in out


def test_counts_in_a_file_are_solved_and_judged_on_themselves(run: Run, load: Path) -> None:
    code, out, _ = run("place", "--load", load, "--gpus", 4, "--slots", "6,5,4,3", "--json")
    result = json.loads(out)["result"]
    assert code == 0
    assert result["imbalance_fit"] == result["imbalance_test"]
    assert result["slots"] == [6, 5, 4, 3]
    assert result["bytes_between_gpus_per_token"] is None


def test_a_plan_is_written_and_moved_from(run: Run, load: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    code, _, _ = run("place", "--load", load, "--gpus", 4, "--output", plan)
    assert code == 0 and read_plan(plan).solver == "best"
    code, _, err = run("place", "--load", load, "--gpus", 4, "--output", plan)
    assert code == 2 and "--force" in err
    code, out, _ = run("place", "--load", load, "--gpus", 4, "--before", plan, "--json")
    assert json.loads(out)["result"]["moved_slots"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpus", 3], 2, "16 slots do not divide evenly over 3 GPUs: 18 would"),
        (["--gpus", 1], 2, "one GPU holds every expert"),
        (["--gpus", 0], 2, "0 GPUs"),
        (["--gpus", 2, "--redundant", -4], 2, "--redundant -4"),
        (["--gpus", 2, "--slots", "8,7"], 2, "15 slots for 16 experts"),
        (["--gpus", 2, "--slots", "8"], 2, "is of 1 GPUs, --gpus says 2"),
        (["--gpus", 2, "--slots", "8,x"], 2, "give a number for each GPU"),
        (["--gpus", 2, "--slots", "8,9", "--redundant", 1], 2, "one of --redundant and --slots"),
        (["--gpus", 4, "--nodes", 3], 2, "4 GPUs do not divide evenly over 3 nodes"),
        (["--gpus", 4, "--solver", "magic"], 2, "no solver is called 'magic'"),
        (["--gpus", 4, "--max-imbalance", "nan"], 2, "max_imbalance = nan"),
    ],
)
def test_what_cannot_be_placed_gets_one_line(
    run: Run, load: Path, arguments: list[object], code: int, words: str
) -> None:
    found, out, err = run("place", "--load", load, *arguments)
    assert (found, out) == (code, "")
    assert words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (np.zeros((2, 16)), "layer 0 has no load"),
        (np.full((2, 16), np.nan), "is not finite"),
        (np.full((2, 16), -1), "is negative"),
        (np.ones(16), "shape (16,)"),
    ],
)
def test_a_load_that_is_none_gets_one_line(
    run: Run, tmp_path: Path, load: np.ndarray, words: str
) -> None:
    np.save(tmp_path / "bad.npy", load)
    code, _, err = run("place", "--load", tmp_path / "bad.npy", "--gpus", 4)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_trace_or_a_load_is_given(run: Run, load: Path) -> None:
    for arguments in ([], [load, "--load", load]):
        code, _, err = run("place", *arguments, "--gpus", 4)
        assert code == 2 and "give one of T" in err
