"""Rebalancing, redundancy and mixes: their figures from plain replays, and their laws."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.hardware import load_hardware
from moeprof.model import MoEModel
from moeprof.placement import Placement, Topology, read_plan, solve_placement
from moeprof.placement.mix import minimise_worst, mix_domains
from moeprof.placement.online import place_online
from moeprof.placement.replay import RoutedIds, batched_steps, judged_requests, replay_ranks
from moeprof.placement.sweep import sweep_redundancy
from moeprof.placement.waiting import assignment_seconds
from moeprof.quantity import Provenance, Quantity
from moeprof.trace import Batching, Trace, open_trace
from tests.recordings import SHIPPED, recording

SECOND = Quantity(1e-3, "s", Provenance.ASSUMED, source="a slow GPU")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return open_trace(SHIPPED)


def with_links(gpus: int, experts: int) -> Topology:
    fast = Quantity(1e9, "bytes/s", Provenance.SPECIFIED, source="a link")
    return Topology((experts // gpus,) * gpus, scale_up_bytes_per_s=fast)


def part(steps: Batching, first: int, stop: int) -> Batching:
    starts = steps.starts[first : stop + 1]
    return Batching(steps.order[starts[0] : starts[-1]], starts - starts[0])


def test_every_interval_runs_on_the_map_solved_before_it(trace: Trace) -> None:
    topology = with_links(4, 64)
    result = place_online(
        trace, topology, interval=700, window=300, solver="greedy", batch=16,
        expert_bytes=1000, seconds_per_assignment=SECOND,
    )  # fmt: skip
    steps = batched_steps(trace, judged_requests(trace), 16)
    ids = RoutedIds.of(trace)
    assert result.starts == list(range(0, len(steps.starts) - 1, 700))
    held = solve_placement(np.ones((8, 64)), topology, solver="linear")
    for made, start, seen in zip(
        result.rebalances, result.starts[1:], result.online[1:], strict=True
    ):
        rows = part(steps, start - 300, start).order
        load = np.stack([np.bincount(e[rows].ravel(), minlength=64) for e in ids.experts])
        fresh = solve_placement(load, topology, solver="greedy")
        assert made.step == start
        assert made.imbalance_before == pytest.approx(held.imbalance(load))
        assert made.imbalance_after == pytest.approx(fresh.imbalance(load))
        assert made.moves.slots <= fresh.moved_slots(held)
        judged = part(steps, start, start + 700)
        loads = replay_ranks(ids, judged, fresh)
        assert seen == pytest.approx(loads.waited().sum() / loads.even().sum())
        saved = replay_ranks(ids, judged, held).waited().mean() - loads.waited().mean()
        assert made.saved == pytest.approx(saved)
        if saved > 0:
            seconds = made.moves.seconds
            assert seconds is not None
            assert made.pays_after_steps == pytest.approx(seconds.value / (saved * 1e-3))
        else:
            assert made.pays_after_steps is None
        held = fresh
    assert result.moved_slots == sum(made.moves.slots for made in result.rebalances)
    assert result.linear[0] == result.static[0] == result.online[0]
    assert result.static[1] == result.online[1]


def test_what_would_not_pay_is_left_out(trace: Trace) -> None:
    topology = with_links(4, 64)
    free = Quantity(1e-30, "s", Provenance.ASSUMED, source="free")
    options = {"interval": 700, "batch": 16, "expert_bytes": 1000, "solver": "greedy"}
    nothing = place_online(
        trace, topology, seconds_per_assignment=free, only_if_it_pays=True, **options
    )  # type: ignore[arg-type]
    assert not any(made.taken for made in nothing.rebalances)
    assert nothing.moved_slots == 0
    assert nothing.online == nothing.linear
    every = place_online(
        trace, topology, seconds_per_assignment=SECOND, only_if_it_pays=True, **options
    )  # type: ignore[arg-type]
    assert every.rebalances[0].taken
    assert every.mean_online < every.mean_linear


def test_good_enough_moves_fewer(trace: Trace) -> None:
    topology = with_links(8, 64)
    moved = [
        place_online(trace, topology, interval=900, batch=16, max_imbalance=limit).moved_slots
        for limit in (None, 1.1)
    ]
    assert moved[1] < moved[0] / 2


def test_rebalancing_refuses_what_cannot_be(trace: Trace) -> None:
    topology = with_links(4, 64)
    with pytest.raises(InputError, match="interval 0: the recording has"):
        place_online(trace, topology, interval=0)
    with pytest.raises(InputError, match="window 0"):
        place_online(trace, topology, interval=5, window=0)
    with pytest.raises(InputError, match="name the hardware"):
        place_online(trace, topology, interval=5, only_if_it_pays=True)


def test_the_seconds_of_an_assignment_are_its_products_at_peak() -> None:
    model, cluster = MoEModel.preset("minimax-m3"), load_hardware("8xh200")
    seconds = assignment_seconds(model, cluster)
    peak = cluster.profile.dense_tflops("bf16").value
    assert seconds.value == pytest.approx(2 * model.expert_parameters / (peak * 1e12))
    assert seconds.provenance is Provenance.ASSUMED
    faster = assignment_seconds(model, cluster, "fp8_block")
    assert faster.value == pytest.approx(seconds.value / 2, rel=0.01)
    with pytest.raises(InputError, match="dense_tflops_fp4 is not known"):
        assignment_seconds(model, cluster, "nvfp4")


def test_a_sweep_is_of_the_same_tokens_and_its_memory_adds_up(trace: Trace) -> None:
    sweep = sweep_redundancy(trace, 8, [0, 8, 32], batch=16, resamples=4)
    assert [row.slots_per_gpu for row in sweep.rows] == [8, 9, 12]
    for row in sweep.rows:
        assert row.lower_bound <= row.imbalance_fit + 1e-9
        size = trace.model.bytes_per_expert("bf16")
        assert row.redundant_bytes_per_gpu["bf16"] == row.redundant * size * 8 / 8
        assert row.busiest_mean.value >= sweep.even_mean
        assert row.busiest_p99.value >= row.busiest_mean.value
    assert sweep.rows[0].step_imbalance_less_first.value == 0
    less = sweep.rows[2].step_imbalance_less_first
    assert less.value == pytest.approx(
        sweep.rows[2].step_imbalance.value - sweep.rows[0].step_imbalance.value
    )


@pytest.mark.parametrize(
    ("redundant", "message"),
    [([], "numbers from 0"), ([-1], "numbers from 0"), ([8, 8], "each once"), ([3], "5 redundant")],
)
def test_a_sweep_refuses_odd_numbers(trace: Trace, redundant: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep_redundancy(trace, 8, redundant, resamples=0)


def test_a_map_is_best_where_it_was_fitted(trace: Trace) -> None:
    result = mix_domains(trace, Topology.even(8, 72))
    matrix = np.array(result.matrix)
    assert matrix.shape == (len(result.domains),) * 2
    assert (matrix.argmin(axis=0) == np.arange(len(matrix))).all()
    assert result.worst_mix == max(result.mix)
    assert result.worst_robust < result.worst_mix - 0.2
    assert set(result.requests) == set(result.domains)


def test_the_worst_domain_never_gets_worse_on_what_was_fitted() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        shares = {str(n): rng.dirichlet(np.full(12, 0.5), 3) * 1e6 for n in range(3)}
        start = solve_placement(np.mean(list(shares.values()), axis=0), Topology.even(4, 16))
        found = minimise_worst(shares, start, iterations=6)
        worst = [max(p.imbalance(s) for s in shares.values()) for p in (start, found)]
        assert worst[1] <= worst[0]


def test_two_opposite_domains_are_met_halfway() -> None:
    """Domain a uses experts 0 to 3, b 4 to 7: only a map that pairs them is even on both."""
    one, other = np.array([[9, 8, 7, 6, 0, 0, 0, 0]]), np.array([[0, 0, 0, 0, 9, 8, 7, 6]])
    shares = {"a": one * 1e5, "b": other * 1e5}
    start = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7]]), 8, Topology.even(2, 8))
    found = minimise_worst(shares, start)
    assert max(found.imbalance(share) for share in shares.values()) == pytest.approx(1.0)


def test_one_label_is_no_mix() -> None:
    with pytest.raises(InputError, match="needs two labels with two requests each"):
        mix_domains(recording("granite-3.0-1b"), Topology.even(8, 32))


def test_the_commands_answer(tmp_path_factory: pytest.TempPathFactory,
                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    plan = tmp_path_factory.mktemp("mix") / "plan.json"
    commands = {
        "sweep": ["--gpus", "4", "--redundant", "0,8", "--batch", "16", "--resamples", "3"],
        "online": ["--hardware", "2x4xh200+ib-ndr-400", "--interval", "1500", "--batch", "16"],
        "mix": ["--gpus", "4", "--output", str(plan)],
    }
    for verb, options in commands.items():
        assert main(["place", verb, str(SHIPPED), *options, "--json", "--quiet"]) == 0
        result = json.loads(capsys.readouterr().out)["result"]
        assert main(["place", verb, str(SHIPPED), *options, "--quiet", *(
            ["--force"] if verb == "mix" else [])]) == 0  # fmt: skip
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
        assert result
    stored = read_plan(plan)
    assert stored.solver == "mix" and stored.load is not None
    assert main(["place", "online", str(SHIPPED), "--interval", "9", "--quiet"]) == 2
    assert "give one of --gpus N and --hardware HW" in capsys.readouterr().err
