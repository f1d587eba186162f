"""From a trace to a judged placement."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.errors import InfeasibleError, InputError
from moeprof.placement import (
    Topology,
    measure_traffic,
    observe_window,
    place_load,
    place_trace,
    read_load,
    solve_placement,
)
from moeprof.placement.windows import split_windows
from moeprof.trace import Trace, open_trace, write_counts
from tests.recordings import SHIPPED

FOUR = Topology.even(4, 20, nodes=2)


def test_the_map_is_fitted_on_one_window_and_judged_on_the_other(trace: Trace) -> None:
    found = place_trace(trace, FOUR, solver="greedy", split="request", fit=0.4, seed=3)
    windows = split_windows(trace, by="request", fit=0.4, seed=3)
    placement = solve_placement(windows.fit_load, FOUR, solver="greedy")
    assert (found.physical_to_logical_map == placement.physical_to_logical_map).all()
    assert found.imbalance_fit == placement.imbalance(windows.fit_load)
    assert found.imbalance_test == placement.imbalance(windows.test_load)
    assert found.imbalance_test > found.imbalance_fit >= found.lower_bound >= 1
    assert found.steps is not None
    assert found.steps.imbalance.value == pytest.approx(found.imbalance_test)
    traffic = measure_traffic(trace, placement, window=windows.test)
    assert found.bytes_between_gpus_per_token == traffic.bytes_between_gpus_per_token
    assert found.bytes_between_nodes_per_token == traffic.bytes_between_nodes_per_token
    assert found.layers == trace.layers == found.plan.layers
    assert found.redundant_bytes == 4 * 3 * trace.model.bytes_per_expert("bf16")


def test_a_solver_is_told_of_the_window_alone(trace: Trace) -> None:
    window = split_windows(trace, by="request", fit=0.4, seed=3)
    assert window.fit is not None
    seen = observe_window(trace, window.fit)
    assert (seen["windows"].sum(axis=0) == window.fit_load).all()
    for row, ids in enumerate(seen["routing"]):
        assert (np.bincount(ids.ravel(), minlength=16) == window.fit_load[row]).all()


def test_moves_are_counted_from_the_map_in_use(trace: Trace) -> None:
    first = place_trace(trace, FOUR, solver="greedy")
    again = place_trace(trace, FOUR, solver="greedy", before=first.plan.placement)
    assert first.moved_slots > 0 and first.moved_from == "experts in order of id"
    assert again.moved_slots == 0 and again.moved_from == "the map before"


def test_a_recording_of_counts_is_judged_without_bytes(model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    counts = np.random.default_rng(0).integers(1, 50, (4, 3, 16))
    write_counts(tmp_path / "c.moetrace", model, counts)
    found = place_trace(open_trace(tmp_path / "c.moetrace"), FOUR)
    assert found.imbalance_test >= 1
    assert found.bytes_between_gpus_per_token is None and found.steps is None


def test_memory_that_slots_do_not_fit_is_infeasible(trace: Trace) -> None:
    size = trace.model.bytes_per_expert("bf16")
    room = Topology.even(4, 20)
    with pytest.raises(InfeasibleError, match="4 slots fit"):
        place_trace(trace, Topology(room.slots, memory_bytes=(4 * 3 * size,) * 4))
    place_trace(trace, Topology(room.slots, memory_bytes=(5 * 3 * size,) * 4))


def test_the_shipped_recording_is_balanced_on_both_windows() -> None:
    found = place_trace(open_trace(SHIPPED), Topology.even(8, 72))
    assert found.imbalance_fit < 1.02
    assert found.imbalance_fit < found.imbalance_test < found.imbalance_test_linear


@pytest.mark.parametrize("by", ["time", "request"])
def test_the_steps_to_come_wait_less_than_with_eplb(by: str) -> None:
    trace = open_trace(SHIPPED)
    ours, theirs = (
        place_trace(trace, Topology.even(8, 72), solver=solver, split=by).steps
        for solver in ("best", "eplb")
    )
    assert ours is not None and theirs is not None
    assert ours.step_imbalance.value < theirs.step_imbalance.value


def test_a_load_is_judged_on_itself() -> None:
    load = np.random.default_rng(0).integers(1, 50, (3, 16))
    found = place_load(load, FOUR, solver="eplb")
    assert found.imbalance_fit == found.imbalance_test
    assert found.split == "none" and found.traffic is None


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is not a NumPy file"), (b"text", "is not a NumPy file"), (None, "No such file")],
)
def test_a_file_that_is_no_load_is_refused(tmp_path, content, words) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "load.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_load(path)


def test_an_array_that_is_no_load_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "load.npy", np.array(["a"]))
    with pytest.raises(InputError, match="one array of numbers"):
        read_load(tmp_path / "load.npy")
    np.save(tmp_path / "flags.npy", np.array([True]))
    with pytest.raises(InputError, match="one array of numbers"):
        read_load(tmp_path / "flags.npy")
