"""Synthetic routing keeps the laws of routing, its targets, its seed, and is like recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.analysis import analyze_load, analyze_locality
from moeprof.cache import lru_curve
from moeprof.cli.main import main
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.model.presets import preset_names
from moeprof.synth import (
    RoutingModel,
    RoutingTargets,
    Shape,
    SynthResult,
    Traffic,
    fit_routing,
    judge_fit,
    synthesize_trace,
)
from moeprof.synth.coupling import coupling_bits
from moeprof.synth.popularity import profiles_around, shares_of, target_shares
from moeprof.synth.schedule import repeated_schedule, served_schedule
from moeprof.synth.targets import routing_for
from moeprof.trace import Phase, TokenRows, Trace, open_trace, synthesize_rows, validate_trace
from tests.recordings import recording

MODEL = MoEModel("small", "small", 1, 4, (1, 2, 3), 32, 4)
ONE = Traffic(prompt_tokens=32, output_tokens=64)


def made(path: Path, tokens: int = 4000, **options: object) -> tuple[SynthResult, Trace]:
    """A synthetic trace on disk, opened."""
    settings = {"targets": RoutingTargets(), "traffic": ONE} if "like" not in options else {}
    result = synthesize_trace(MODEL, path, tokens=tokens, **(settings | options))  # type: ignore
    return result, open_trace(path)


@given(data=st.data())
def test_shares_are_at_most_1_and_sum_to_k(data: st.DataObject) -> None:
    experts = data.draw(st.integers(2, 40))
    top_k = data.draw(st.integers(1, experts))
    weight = data.draw(st.lists(st.floats(1e-6, 1e6), min_size=experts, max_size=experts))
    share = shares_of(np.array(weight), top_k)
    assert share.max() <= 1 + 1e-9
    assert share.sum() == pytest.approx(top_k, rel=1e-6)


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("imbalance", [1.0, 1.3, 4.0, 7.9])
def test_shares_have_the_imbalance_that_was_asked_for(shape: Shape, imbalance: float) -> None:
    share = target_shares(imbalance, shape, 32, 4, np.random.default_rng(0))
    assert share.max() * 32 / 4 == pytest.approx(imbalance, rel=1e-3)


@settings(max_examples=60)
@given(data=st.data())
def test_what_is_drawn_keeps_the_laws_of_routing(data: st.DataObject) -> None:
    experts = data.draw(st.integers(2, 300))
    top_k = data.draw(st.integers(1, min(experts, 12)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight = rng.lognormal(0, data.draw(st.floats(0, 6)), (2, 64, experts))
    share = shares_of(weight, top_k).astype(np.float32)
    gain = np.exp(rng.normal(0, data.draw(st.floats(0, 8)), (2, 2, experts + 1)))
    routing = RoutingModel(share, gain, top_k, common=data.draw(st.floats(0, 0.99)))
    schedule = served_schedule(ONE, 200, ["all"], 64, rng)
    ids = routing.draw(schedule, 5)
    assert ids.max() < experts
    assert (np.diff(np.sort(ids.astype(int), axis=2)) > 0).all()


def test_profiles_differ_and_their_mean_does_not() -> None:
    rng = np.random.default_rng(0)
    base = target_shares(2.0, Shape.LOGNORMAL, 32, 4, rng)
    use = rng.integers(1, 9, 16).astype(float)
    shares = profiles_around(base, use, rng.normal(0, 0.5, (16, 32)), 4)
    np.testing.assert_allclose(shares.sum(axis=1), 4, rtol=1e-4)
    np.testing.assert_allclose(use @ shares / use.sum(), base, rtol=0.01)
    assert shares.std(axis=0).min() > 0


@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_served_schedule_keeps_the_laws(concurrency: int) -> None:
    traffic = replace(ONE, concurrency=concurrency)
    schedule = served_schedule(traffic, 3000, ["a", "b"], 4, np.random.default_rng(1))
    assert len(schedule) == 3000
    assert (np.diff(schedule.step) >= 0).all()
    assert set(np.diff(schedule.step)) <= {0, 1}
    prompts = np.array([request.prompt_tokens for request in schedule.requests])
    np.testing.assert_array_equal(
        schedule.phase == Phase.PREFILL, schedule.position < prompts[schedule.request]
    )
    decode = schedule.phase == Phase.DECODE
    assert np.bincount(schedule.step[decode]).max() == concurrency
    for step in np.unique(schedule.step):  # a token a request, but for the prompt
        now = decode & (schedule.step == step)
        assert len(set(schedule.request[now])) == now.sum()


def test_same_seed_same_bytes_and_a_sound_trace(tmp_path: Path) -> None:
    first, trace = made(tmp_path / "a", 70_000, seed=3)
    again, _ = made(tmp_path / "b", 70_000, seed=3)
    other, _ = made(tmp_path / "c", 70_000, seed=4)
    assert first.sha256 == again.sha256 != other.sha256
    for file in (tmp_path / "a").rglob("*.*"):
        if file.is_file():
            assert (
                file.read_bytes()
                == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
            )
    info = validate_trace(tmp_path / "a")
    assert info.problems == []
    assert info.tokens == first.tokens == 70_000
    for layer in trace.layers:
        assert (np.diff(np.sort(trace.experts(layer), axis=1)) > 0).all()


def test_targets_are_met(tmp_path: Path) -> None:
    targets = RoutingTargets(imbalance=[1.2, 2.0, 3.0], repeat=0.4, domains=2)
    _, trace = made(tmp_path / "t", 20_000, targets=targets)
    reached = [layer.imbalance for layer in analyze_load(trace).per_layer]
    assert reached == pytest.approx([1.2, 2.0, 3.0], rel=0.05)
    assert analyze_locality(trace).next_token_repeat == pytest.approx(0.4, rel=0.05)
    assert trace.labels == ("domain-0", "domain-1")


def test_a_lag_profile_is_met(tmp_path: Path) -> None:
    asked = [0.4, 0.3, 0.25, 0.2]
    _, trace = made(tmp_path / "t", 20_000, targets=RoutingTargets(lag_profile=asked))
    by_lag = analyze_locality(trace).repeat_by_lag
    assert [by_lag[lag] for lag in (1, 2, 4, 8)] == pytest.approx(asked, rel=0.15)


def test_measured_loads_are_met(tmp_path: Path) -> None:
    load = np.random.default_rng(0).lognormal(0, 0.5, (3, 32))
    _, trace = made(tmp_path / "t", 20_000, targets=RoutingTargets(load=load))
    share = analyze_load(trace).load / 20_000
    np.testing.assert_allclose(share, load / load.sum(axis=1, keepdims=True) * 4, rtol=0.1)


def test_coupling_ties_layers_and_changes_none(tmp_path: Path) -> None:
    bits, repeats = [], []
    for number, coupling in enumerate((0.0, 0.5)):
        targets = RoutingTargets(coupling=coupling)
        _, trace = made(tmp_path / str(number), 20_000, targets=targets)
        ids = np.stack([trace.experts(layer) for layer in trace.layers], axis=1)
        bits.append(coupling_bits(ids, 32))
        repeats.append(analyze_locality(trace).next_token_repeat)
    assert bits[1] > 3 * bits[0]
    assert repeats[1] == pytest.approx(repeats[0], rel=0.05)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (RoutingTargets(imbalance=9.0), "imbalance 9"),
        (RoutingTargets(imbalance=[1.5, 2.0]), "2 figures of imbalance for 3"),
        (RoutingTargets(repeat=0.01), "it is from"),
        (RoutingTargets(load=np.ones((2, 32))), "2 layers x 32 experts"),
        (RoutingTargets(load=-np.ones((3, 32))), "none below 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_targets_out_of_reach_are_refused(
    tmp_path: Path, targets: RoutingTargets, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path / "t", targets=targets)
    assert not list(tmp_path.iterdir())


def test_values_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in ({"repeat": 1.0}, {"decay": 0.0}, {"coupling": -0.1}, {"domains": 0}):
        with pytest.raises(InputError, match="synthetic routing takes"):
            RoutingTargets(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="traffic takes"):
        Traffic(concurrency=0)
    with pytest.raises(InputError, match="tokens = 0"):
        made(tmp_path / "t", 0)
    made(tmp_path / "t", 10)
    with pytest.raises(TraceError, match="--force"):
        made(tmp_path / "t", 10)


def test_the_rows_of_a_repeated_schedule_are_new_requests(trace: Trace) -> None:
    schedule = fit_routing(trace).schedule
    twice = repeated_schedule(schedule, 2 * len(schedule) + 7)
    assert len(twice) == 2 * len(schedule) + 7
    assert len(twice.requests) == 2 * len(schedule.requests) + 1
    assert set(np.diff(twice.step)) <= {0, 1}
    np.testing.assert_array_equal(twice.request[: len(schedule)], schedule.request)
    few = repeated_schedule(schedule, len(schedule) // 3)
    assert len(few) == len(schedule) // 3
    assert len(few.requests) == len(schedule.requests) // 3


def test_a_fit_needs_order_and_the_same_shape(tmp_path: Path, trace: Trace) -> None:
    with pytest.raises(InputError, match="only be like one of its own model"):
        made(tmp_path / "t", like=trace)
    with pytest.raises(InputError, match="takes its targets"):
        made(tmp_path / "t", like=trace, targets=RoutingTargets())


def test_rows_without_a_layer_are_left_out(model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 90, requests=3)
    recorded = np.ones(rows.experts.shape[:2], bool)
    recorded[::4, 1] = False
    holes = TokenRows(rows.step, rows.request, rows.position, rows.phase, rows.experts, recorded)
    fitted = fit_routing(Trace.in_memory(model, holes, requests))
    assert len(fitted.schedule) == recorded.all(axis=1).sum()


@pytest.mark.parametrize(
    "name", ["deepseek-v4-flash", "gpt-oss-20b", "granite-3.0-1b", "olmoe-1b-7b"]
)
def test_it_is_like_each_recording(tmp_path: Path, name: str) -> None:
    original = recording(name)
    result = synthesize_trace(
        original.model, tmp_path / "t", tokens=original.tokens, like=original, seed=1
    )
    assert result.fit is not None
    assert result.fit.worst < 0.05
    assert judge_fit(original, original).worst == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "synth",
        "olmoe-1b-7b",
        "--tokens",
        "900",
        "--prompt-tokens",
        "20",
        "--quiet",
        "--output",
    ]
    assert main([*words, str(tmp_path / "a"), "--imbalance", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["tokens"] == 900
    assert len(result["sha256"]) == 64
    again = [*words, str(tmp_path / "b"), "--like", str(tmp_path / "a")]
    assert main(again) == 0
    assert "next-token repeat" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "c"), "--repeat", "much"]) == 2
    assert "numbers are needed" in capsys.readouterr().err
    assert main(["analyze", "locality", str(tmp_path / "a"), "--json"]) == 0
    locality = json.loads(capsys.readouterr().out)["result"]
    assert {"next_token_repeat", "distinct_by_batch", "distinct_null"} <= set(locality)
    assert main(["analyze", "locality", str(tmp_path / "a")]) == 0


@pytest.mark.parametrize("name", [n for n in preset_names() if MoEModel.preset(n).moe_layers])
def test_the_defaults_are_in_reach_of_every_model(name: str) -> None:
    model = MoEModel.preset(name)
    schedule = served_schedule(Traffic(), 16_384, ["all"], 64, np.random.default_rng(0))
    few = replace(model, moe_layers=model.moe_layers[:2], tensors=(), prediction_tensors=())
    assert routing_for(RoutingTargets(), few, schedule, 0).layers == 2


def test_published_statistics_can_be_targets(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: experts by batch of arXiv 2608.07911, repeat and LRU of kekzl/imp#1359."""
    model = MoEModel("qwen3-30b-a3b", "qwen3_moe", 1, 3, (0, 1, 2), 128, 8)
    targets = RoutingTargets(imbalance=10.5, repeat=0.45, decay=3, request_spread=2)
    together = Traffic(prompt_tokens=8, output_tokens=128, concurrency=16)
    synthesize_trace(model, tmp_path / "a", tokens=16_000, targets=targets, traffic=together)
    union = analyze_locality(open_trace(tmp_path / "a")).distinct_by_batch
    for batch, published in {2: 15.02, 4: 26.58, 8: 42.63, 16: 59.21}.items():
        assert union[batch] == pytest.approx(published, rel=0.07)
    alone = Traffic(prompt_tokens=8, output_tokens=400)
    synthesize_trace(model, tmp_path / "b", tokens=8_000, targets=targets, traffic=alone)
    trace = open_trace(tmp_path / "b")
    assert analyze_locality(trace).next_token_repeat == pytest.approx(0.45, rel=0.05)
    curve = lru_curve(trace)
    assert 0.90 < curve.hit_ratio[list(curve.slots).index(51)] < 0.953  # the span of three texts
