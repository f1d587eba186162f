"""The law by hand, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from moeprof.errors import InputError
from moeprof.hardware import load_hardware
from moeprof.model import MoEModel
from moeprof.offload import (
    RESOURCES,
    DecodeWork,
    Serve,
    Speeds,
    decode_work,
    estimate_decode,
    find_rates,
    spread_misses,
    time_layers,
)

# Round numbers: an expert takes 1 s in GPU memory, 10 s over the link, 4 s on the CPU, 20 s from
# the drive.
SPEEDS = Speeds(
    hbm=100.0,
    link=10.0,
    cpu=25.0,
    drive=5.0,
    copy_latency_s=0.5,
    drive_latency_s=0.25,
    drive_queue_depth=4,
    kernel_s=0.125,
    layer_s=2.0,
    cpu_layer_s=0.75,
    step_s=3.0,
)
WORK = DecodeWork(layers=3, moe_layers=2, expert_bytes=100, shared_bytes=50, dense_bytes=400)


def seconds(experts: int, misses: int, **options: object) -> float:
    return float(time_layers(experts, misses, WORK, SPEEDS, **options).seconds)  # type: ignore[arg-type]


def test_all_hits_take_the_gpu_alone() -> None:
    assert seconds(4, 0) == 0.125 + 0.5 + 4 * 1


def test_copies_run_beside_hits_and_are_computed_after() -> None:
    assert seconds(4, 1) == 0.125 + max(0.5 + 3, 10.5) + 1
    assert seconds(4, 2) == 0.125 + max(0.5 + 2, 21.0) + 2


def test_matrices_apart_pay_the_latency_each() -> None:
    assert seconds(4, 1, apart=True) == 0.125 + 10 + 3 * 0.5 + 1


def test_without_overlap_everything_adds() -> None:
    assert seconds(4, 1, overlap=False) == 0.125 + 0.5 + 3 + 10.5 + 1
    assert seconds(4, 2, overlap=False, serve="cpu") == 0.125 + 0.5 + 2 + 8 + 0.75


def test_the_cpu_runs_beside_the_gpu() -> None:
    assert seconds(8, 1, serve="cpu") == 0.125 + 0.5 + 7
    assert seconds(8, 4, serve="cpu") == 0.125 + 16 + 0.75


def test_auto_splits_an_event_where_that_is_shortest() -> None:
    times = time_layers(4, 4, WORK, SPEEDS, serve="auto")
    # 4 on the CPU 16.75; 1 copied: CPU reads 3 and the copy's 1, still 16.75 and no gain.
    assert (times.seconds, times.copied) == (0.125 + 16.75, 0)
    fast = SPEEDS._replace(link=50.0, copy_latency_s=0.0, cpu=20.0, cpu_layer_s=0.0)
    times = time_layers(4, 4, WORK, fast, serve="auto")
    assert (times.seconds, times.copied) == (0.125 + 4 * 2 + 4, 4)


def test_drives_come_before_the_last_copy_and_queue() -> None:
    # 2 of 3 misses: 6 matrices are 2 rounds; then one expert's copy and both computed.
    assert seconds(4, 3, drive_misses=2) == 0.125 + max(31.5, 40 + 2 * 0.25 + 10.5) + 3
    cpu = seconds(4, 3, drive_misses=2, serve="cpu")
    assert cpu == 0.125 + max(0.5 + 1, 12.75, 40 + 0.5 + 4)


def test_a_step_by_hand_and_its_band() -> None:
    rates = find_rates(load_hardware("rtx-4090+epyc-9005"))
    estimate = estimate_decode(WORK, rates, experts=4, misses=2)
    at = rates.at("middle")
    link = 2 * (100 / at.link + at.copy_latency_s)
    event = at.kernel_s + max(250 / at.hbm, link) + 200 / at.hbm
    step = 2 * event + 400 / at.hbm + 3 * at.layer_s + at.step_s
    assert_allclose(estimate.step_s, step)
    assert_allclose(estimate.tok_s, 1 / step)
    assert estimate.tok_s_low < estimate.tok_s < estimate.tok_s_high


def test_arithmetic_of_many_tokens_takes_longer_than_reading() -> None:
    fast = SPEEDS._replace(flops=1000.0)
    work = DecodeWork(3, 2, 100, 50, 400, top_k=2, expert_flop=500, shared_flop=250, dense_flop=100)
    one = time_layers(4, 2, work, fast, tokens=1)
    assert one.seconds == 0.125 + 21 + 2
    many = time_layers(4, 2, work, fast, tokens=16)
    each = 16 * 2 * 0.5 / 4  # seconds of an expert: 16 tokens x top-2 over 4 experts
    assert many.seconds == 0.125 + max(16 * 0.25 + 2 * each, 21) + 2 * each


def test_links_of_many_gpus_share_one_memory() -> None:
    one, eight = (find_rates(load_hardware(f"{n}xrtx-5090+desktop-ddr5")) for n in (1, 8))
    reached = (
        load_hardware("rtx-5090+desktop-ddr5")
        .part("host")
        .figure("memory_bandwidth_effective_bytes_per_s")
    )
    assert one.link.value < reached.value == eight.link.value
    assert eight.hbm.value == 8 * one.hbm.value


def test_the_mean_hit_ratio_is_not_enough() -> None:
    """Misses that fall together cost more than the same number spread evenly."""
    rates = find_rates(load_hardware("rtx-4090+epyc-9005"))
    work = DecodeWork(layers=1, moe_layers=1, expert_bytes=2e8, shared_bytes=1.5e9)
    together, even = (
        estimate_decode(work, rates, experts=8, misses=misses, serve="cpu").step_s
        for misses in ([0, 8], [4, 4])
    )
    assert together > even * 1.2


def test_spread_misses_has_the_mean_and_sums_to_one() -> None:
    experts, misses, weights = spread_misses(8, 0.7)
    assert set(experts) == {8}
    assert_allclose(weights.sum(), 1)
    assert_allclose((misses * weights).sum(), 8 * 0.3)


def test_work_of_m3_is_its_bytes() -> None:
    work = decode_work(MoEModel.preset("minimax-m3"), "bf16")
    assert (work.layers, work.moe_layers, work.expert_bytes) == (60, 57, 113_246_208)
    model = MoEModel.preset("minimax-m3")
    active = model.parameters["active"] + model.parameters["head"] + model.parameters["norms"]
    routed = 57 * 4 * work.expert_bytes
    in_fp32 = 2 * model.parameters["router"]  # more than in BF16
    assert work.dense_bytes + 57 * work.shared_bytes + routed == 2 * active + in_fp32


def test_sparse_attention_reads_chosen_blocks_alone() -> None:
    model = MoEModel.preset("minimax-m3")
    short, long = (decode_work(model, "bf16", context_tokens=n).kv_bytes for n in (2048, 10_048))
    assert short == 2048 * model.kv_bytes_per_token_per_rank(1)
    token = 2 * 61_440  # keys and values of 60 layers in BF16
    assert long - short == 8000 * (2 * 7296 + token * 3 / 60)


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ((2, 3), {}, "misses"),
        ((3, 2), {"drive_misses": 3}, "drive_misses"),
        ((3, 2), {"serve": "gpu"}, "serve 'gpu'"),
    ],
)
def test_contradictions_are_refused(
    counts: tuple[int, int], options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        seconds(*counts, **options)


def test_missing_parts_are_named() -> None:
    bare = SPEEDS._replace(cpu=None, drive=None)
    with pytest.raises(InputError, match="needs a host"):
        time_layers(4, 1, WORK, bare, serve="cpu")
    with pytest.raises(InputError, match="need a drive"):
        time_layers(4, 1, WORK, bare, drive_misses=1)
    with pytest.raises(InputError, match="one memory"):
        find_rates(load_hardware("m3-ultra-512gb"))


rates = st.floats(1, 1e4)
SOME_SPEEDS = st.builds(
    Speeds,
    hbm=rates,
    link=rates,
    cpu=rates,
    drive=rates,
    copy_latency_s=st.floats(0, 1),
    drive_latency_s=st.floats(0, 1),
    drive_queue_depth=st.integers(1, 8),
    kernel_s=st.floats(0, 1),
    layer_s=st.floats(0, 1),
    cpu_layer_s=st.floats(0, 1),
    step_s=st.floats(0, 1),
    flops=st.none() | rates,
)
OPTIONS = st.fixed_dictionaries(
    {"serve": st.sampled_from(list(Serve)), "overlap": st.booleans(), "apart": st.booleans()}
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    needed = draw(st.integers(0, 12))
    missed = draw(st.integers(0, needed))
    return needed, missed, draw(st.integers(0, missed))


@given(counts(), SOME_SPEEDS, OPTIONS)
def test_no_event_beats_a_roofline_and_shares_sum(
    event: tuple[int, int, int], speeds: Speeds, options: dict[str, object]
) -> None:
    needed, missed, stored = event
    times = time_layers(needed, missed, WORK, speeds, drive_misses=stored, **options)  # type: ignore[arg-type]
    on_gpu = needed - missed + times.copied
    least = max(
        (on_gpu * 100 + 50) / speeds.hbm,
        times.copied * 100 / speeds.link,
        (missed - times.copied) * 100 / speeds.cpu,  # type: ignore[operator]
        stored * 100 / speeds.drive,  # type: ignore[operator]
    )
    assert times.seconds >= least * (1 - 1e-12)
    assert_allclose(times.shares.sum(axis=0), times.seconds)
    assert times.shares.shape == (len(RESOURCES),)
    assert (times.shares >= 0).all()


@given(counts(), SOME_SPEEDS, OPTIONS, st.sampled_from(["hbm", "link", "cpu", "drive"]))
def test_a_faster_part_is_never_slower(
    event: tuple[int, int, int], speeds: Speeds, options: dict[str, object], part: str
) -> None:
    needed, missed, stored = event
    faster = speeds._replace(**{part: 2 * getattr(speeds, part)})
    slow, fast = (
        time_layers(needed, missed, WORK, s, drive_misses=stored, **options).seconds  # type: ignore[arg-type]
        for s in (speeds, faster)
    )
    assert fast <= slow * (1 + 1e-12)


@given(counts(), SOME_SPEEDS, st.booleans())
def test_a_hit_in_place_of_a_copy_is_never_slower(
    event: tuple[int, int, int], speeds: Speeds, overlap: bool
) -> None:
    needed, missed, _ = event
    all_times = time_layers(needed, np.arange(missed + 1), WORK, speeds, overlap=overlap).seconds
    assert (np.diff(all_times) >= -1e-12).all()


@given(counts(), SOME_SPEEDS, st.booleans())
def test_overlap_and_choice_never_cost(
    event: tuple[int, int, int], speeds: Speeds, apart: bool
) -> None:
    needed, missed, stored = event
    found = {
        (serve, overlap): time_layers(
            needed,
            missed,
            WORK,
            speeds,
            drive_misses=stored,
            serve=serve,
            overlap=overlap,
            apart=apart,
        ).seconds
        for serve in Serve
        for overlap in (False, True)
    }
    least = min(found[Serve.COPY, True], found[Serve.CPU, True])
    assert found[Serve.AUTO, True] <= least * (1 + 1e-12)
    if not stored:
        for serve in Serve:
            assert found[serve, True] <= found[serve, False] * (1 + 1e-12)
