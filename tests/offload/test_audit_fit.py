"""The fitted constants are what the audited data say, and a band is what it claims to be."""

from itertools import pairwise
from math import exp, log

import numpy as np
import pytest

from benchmarks.audit import ktransformers
from benchmarks.audit.fit import (
    COVERED,
    Seen,
    calibrate,
    constants_factor,
    fit_constants,
    predict,
    widen,
)
from benchmarks.audit.prediction import Constants, case_of, gather, inputs_of, speeds_of
from benchmarks.audit.residency import LRU_LOCALITY, LRU_POINTS, miss_ratio, own_locality
from benchmarks.audit.runs import Run, load_runs, shapes
from moeprof.cache import lru_curve
from moeprof.offload.estimate import spread_misses
from moeprof.offload.rates import Speeds, constant
from moeprof.offload.timing import step_seconds, time_layers
from moeprof.offload.work import DecodeWork
from moeprof.quantity import Provenance
from tests.recordings import recording

OWN = [run for run in load_runs() if not run.baseline]
NAMES = ("cpu_efficiency", "layer_s", "compiled_layer_s", "eager_layer_s", "cpu_layer_s")


def committed() -> Constants:
    return Constants(*(constant(name).value for name in NAMES))


def test_the_fit_gives_the_constants_that_are_committed() -> None:
    assert fit_constants(OWN) == pytest.approx(committed(), rel=0.05)


def test_the_bands_of_the_constants_are_those_that_hold_what_was_held_out() -> None:
    factor = constants_factor(load_runs())
    for end in ("slow", "fast"):
        for name, bound in zip(NAMES, widen(committed(), end, factor), strict=True):
            found = constant(name)
            assert found.provenance is Provenance.FITTED
            slow, fast = (found.low, found.high) if name == NAMES[0] else (found.high, found.low)
            assert {"slow": slow, "fast": fast}[end] == pytest.approx(bound, rel=0.05)


def test_a_wrong_constant_fits_worse() -> None:
    def badness(constants: Constants) -> float:
        return float(np.median([abs(seen.log_error) for seen in predict(OWN, constants)]))

    best = badness(committed())
    for name in Constants._fields[3:]:
        worse = committed()._replace(**{name: 8 * getattr(committed(), name)})
        assert badness(worse) > best


@pytest.mark.parametrize(
    "row", ["fiddler-mixtral8x7b-rtx6000ada-b1", "lcpp-pr27861-sissyhistorian"]
)
def test_runs_in_columns_are_runs_one_by_one(row: str) -> None:
    """The audit times runs side by side; the law itself, asked for one, says the same."""
    run = next(run for run in OWN if run.row.startswith(row))
    assert one_by_one(run, committed()) == pytest.approx(predict([run], committed())[0].tok_s)


def one_by_one(run: Run, constants: Constants) -> float:
    case = case_of(run, [band.value for band in inputs_of(run)])
    work = DecodeWork(case.layers, case.moe_layers, case.expert_bytes, 0.0, case.dense_bytes)
    launches = {"native": constants.layer_s, "eager": constants.eager_layer_s}
    speeds = Speeds(
        hbm=case.hbm * constant("hbm_efficiency").value,
        link=case.link * constant("link_efficiency").value,
        cpu=case.cpu * constants.cpu_efficiency,
        drive=None,
        copy_latency_s=constant("copy_latency_s").value,
        drive_latency_s=0.0,
        drive_queue_depth=1.0,
        kernel_s=constant("kernel_s").value,
        layer_s=launches[run.engine.runtime],
        cpu_layer_s=constants.cpu_layer_s,
        step_s=constant("step_s").value,
    )
    experts, misses, weights = spread_misses(run.shape.top_k, case.hit_ratio)
    times = time_layers(experts, misses, work, speeds, serve=run.engine.serve)
    layers = case.moe_layers * float(times.seconds @ weights)
    return 1 / (layers + sum(step_seconds(work, speeds)))


def test_every_speed_is_below_what_the_bytes_allow() -> None:
    """No prediction beats all memories together at their peaks."""
    runs = load_runs()
    for run, seen in zip(runs, predict(runs, committed()), strict=True):
        case = seen.case
        read = case.moe_layers * case.needed * case.expert_bytes + case.dense_bytes
        memories = case.hbm + run.machine.host.high + run.machine.link.high
        assert seen.tok_s / case.tokens < memories / read


def test_groups_keep_the_order_of_runs() -> None:
    runs = load_runs()
    cases = [case_of(run, [band.value for band in inputs_of(run)]) for run in runs]
    forward = speeds_of(gather(runs, cases), committed())
    backward = speeds_of(gather(runs[::-1], cases[::-1]), committed())
    assert forward == pytest.approx(backward[::-1])


def test_a_band_holds_the_share_it_was_made_for() -> None:
    rng = np.random.default_rng(0)
    spreads = rng.uniform(0, 1, 400)
    seen = [
        Seen(OWN[0], case_of(OWN[0], [1, 1, 1, 1, 1]), OWN[0].tok_s * exp(error), spread)
        for error, spread in zip(rng.normal(0, 0.1 + spreads), spreads, strict=True)
    ]
    width = calibrate(seen[:200])
    held = np.mean([abs(one.log_error) <= log(width.factor(one.spread)) for one in seen[200:]])
    assert held == pytest.approx(COVERED, abs=0.08)


def test_the_law_of_hits_is_that_of_its_points() -> None:
    own = [own_locality(point) for point in LRU_POINTS]
    assert float(np.median(own)) == pytest.approx(LRU_LOCALITY.value, abs=0.01)
    ends = np.quantile(own, [0.1, 0.9])
    assert ends == pytest.approx([LRU_LOCALITY.low, LRU_LOCALITY.high], abs=0.01)


@pytest.mark.parametrize(
    "name", ["gpt-oss-20b", "olmoe-1b-7b", "granite-3.0-1b", "deepseek-v4-flash"]
)
def test_points_of_recordings_are_their_curves(name: str) -> None:
    trace = recording(name)
    curve = lru_curve(trace)
    for point in (point for point in LRU_POINTS if point.model == name):
        found = np.interp(point.share * trace.model.experts, curve.slots, curve.hit_ratio)
        assert found == pytest.approx(point.hit_ratio, abs=0.001)


def test_misses_fall_with_the_share_to_none() -> None:
    shape = shapes()["qwen3-30b-a3b"]
    for locality in (0.0, 1.5):
        misses = [miss_ratio(share, shape, locality) for share in np.linspace(0, 1, 9)]
        assert misses[0] == 1 and misses[-1] == 0
        assert all(later < earlier for earlier, later in pairwise(misses))


def test_ktransformers_meets_its_ends_and_grows_between() -> None:
    correction = ktransformers.correct()
    speeds = [
        correction.tok_s(ktransformers.SETUP.part(ktransformers.hits_at(n)))
        for n in range(0, 513, 64)
    ]
    assert speeds[0] == pytest.approx(ktransformers.MEASURED[0])
    assert speeds[-1] == pytest.approx(ktransformers.MEASURED[512])
    assert speeds == sorted(speeds)
    assert speeds[4] == pytest.approx(ktransformers.MEASURED[256], rel=0.1)
