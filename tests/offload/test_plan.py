"""Plans: a batch of one by hand, laws over sizes and parts, what does not fit, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from moeprof.cache import replay_cache
from moeprof.cli.main import main
from moeprof.errors import InfeasibleError, InputError
from moeprof.hardware import load_hardware
from moeprof.model import MoEModel, weight_bytes
from moeprof.offload import find_rates, plan_offload
from moeprof.offload.memory import plan_memory
from moeprof.offload.traffic import Recording, least_misses
from moeprof.trace import Phase, Trace, synthesize_rows
from tests.conftest import small_config

MACHINE = "rtx-4090+epyc-9005"
SMALL = MoEModel.from_config(small_config())
ROUTED = 3 * 16 * 32 * 2  # bytes of an expert in BF16
RESERVE = 1 << 30


def one_user(tokens: int = 400) -> Trace:
    """A step a token."""
    return Trace.in_memory(SMALL, *synthesize_rows(SMALL, tokens, requests=1))


def room_for(slots: float, context: int) -> float:
    """GPU memory with `slots` of every layer beside all else."""
    dense = sum(size for name, size in weight_bytes(SMALL, "bf16").items() if name != "routed")
    cache = SMALL.cache_bytes_per_sequence_per_rank(context)
    return RESERVE + dense + cache + 3 * slots * ROUTED


def test_batch_one_equals_the_calculation_by_hand() -> None:
    trace = one_user()
    plan = plan_offload(
        trace, SMALL, MACHINE, vram_bytes=room_for(6, 400), policy="lru", serve="copy"
    )
    row = replay_cache(trace, slots=6, phase=Phase.DECODE, events=True).rows[0]
    assert (plan.slots, plan.rows[0].hit_ratio) == (6, pytest.approx(row.hit_ratio))
    at = find_rates(load_hardware(MACHINE)).at("middle")
    sizes = weight_bytes(SMALL, "bf16")
    outside = sum(sizes[name] for name in ("attention", "dense", "router", "head", "norms"))
    position = trace.position[trace.phase == Phase.DECODE].mean()
    kv = int(position) * SMALL.kv_bytes_per_token_per_rank()
    seconds = 0.0
    for misses in row.event_misses.T:
        seconds += (outside + kv) / at.hbm + at.step_s + 4 * at.layer_s
        for missed in misses:
            hits = (3 - missed) * ROUTED / at.hbm
            link = missed * (ROUTED / at.link + at.copy_latency_s)
            seconds += at.kernel_s + max(hits, link) + missed * ROUTED / at.hbm
    assert_allclose(plan.tok_s, row.event_misses.shape[1] / seconds)


def test_the_ledger_sums_and_counts_copies() -> None:
    memory = plan_memory(
        SMALL,
        load_hardware(MACHINE),
        "bf16",
        vram_bytes=room_for(5.9, 64),
        ram_bytes=8 << 30,
        context_tokens=64,
    )
    assert memory.used_slots == 15
    for tier in (memory.gpu, memory.host, memory.drive):
        assert tier.total_bytes == sum(tier.classes.values())
    assert memory.gpu.total_bytes <= room_for(5.9, 64)
    whole = sum(weight_bytes(SMALL, "bf16").values())
    beside = memory.gpu.classes["kv"] + memory.gpu.classes["reserve"]
    assert memory.gpu.total_bytes - beside == whole - (48 - 15) * ROUTED
    assert memory.host.classes["experts"] == 48 * ROUTED
    assert memory.duplicate_bytes == 15 * ROUTED
    alone = plan_memory(
        SMALL, load_hardware(MACHINE), "bf16", vram_bytes=room_for(5, 0), exclusive=True
    )
    assert alone.host.classes["experts"] == 33 * ROUTED
    assert alone.duplicate_bytes == 0


@settings(max_examples=25)
@given(
    st.sampled_from(["lru", "lfu", "static", "belady", "whole-layers"]),
    st.sampled_from(["copy", "cpu", "auto"]),
    st.sampled_from(["layer", "global"]),
    st.integers(0, 16),
    st.booleans(),
    st.integers(0, 5),
)
def test_no_plan_beats_its_limit_or_a_roofline(
    policy: str, serve: str, scope: str, slots: int, short: bool, seed: int
) -> None:
    trace = Trace.in_memory(SMALL, *synthesize_rows(SMALL, 200, requests=2, seed=seed))
    plan = plan_offload(
        trace,
        SMALL,
        MACHINE + "+nvme-gen4",
        vram_bytes=room_for(slots, 2 * 200),
        scope=scope,
        ram_bytes=(4 << 30) + 20 * ROUTED if short else None,
        policy=policy,
        serve=serve,
    )
    row = plan.rows[0]
    assert plan.tok_s_low <= plan.tok_s <= plan.tok_s_high
    assert plan.tok_s <= plan.tok_s_limit * (1 + 1e-9)
    assert_allclose(sum(plan.share.values()), 1)
    rates = find_rates(load_hardware(MACHINE + "+nvme-gen4"))
    for part, rate in (("gpu", rates.hbm), ("link", rates.link), ("drive", rates.drive)):
        assert rate is not None
        assert row.bytes_per_token[part] / rate.value <= (1 + 1e-9) / plan.tok_s
    peak = load_hardware(MACHINE).profile.memory_bandwidth.value
    assert row.bytes_per_token["gpu"] / peak <= 1 / plan.tok_s_high
    assert short == (plan.memory.reads_drive)


def test_more_memory_is_never_slower_where_lru_copies() -> None:
    trace = one_user()
    sizes = [room_for(slots, 400) for slots in range(17)]
    plan = plan_offload(trace, SMALL, MACHINE, vram_bytes=sizes, policy="lru", serve="copy")
    by_size = sorted(plan.rows, key=lambda row: row.vram_bytes)
    assert [row.slots for row in by_size] == list(range(17))
    assert (np.diff([row.tok_s for row in by_size]) >= -1e-9).all()
    assert by_size[-1].bytes_per_token["link"] < by_size[0].bytes_per_token["link"] / 5
    assert plan.rows[0].tok_s == max(row.tok_s for row in plan.rows)


def test_a_faster_link_is_never_slower() -> None:
    trace = one_user()
    slow, fast = (
        plan_offload(
            trace,
            SMALL,
            f"{MACHINE}+{link}",
            vram_bytes=room_for(5, 400),
            policy="lru",
            serve="copy",
        ).tok_s
        for link in ("pcie3-x16", "pcie5-x16")
    )
    assert slow < fast


def test_least_misses_are_those_of_the_best_start_and_pool() -> None:
    """Brute force: with as many slots as are ever needed nothing is missed; with none, all is."""
    trace = one_user(60)
    recording = Recording(trace)
    steps = len(recording.steps.starts) - 1
    assert least_misses(recording, 0, 48) == 0
    assert least_misses(recording, 0, 0) == steps * 9
    previous = steps * 9
    for slots in range(1, 48, 6):
        least = least_misses(recording, 0, slots)
        assert least <= previous
        cold = (
            replay_cache(
                trace, policy="belady-bypass", slots=slots, scope="global", phase=Phase.DECODE
            )
            .rows[0]
            .misses
        )
        assert cold - slots <= least <= cold
        previous = least


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 3))
def test_least_misses_equal_brute_force(seed: int, slots: int, first: int) -> None:
    """Over every choice of what to begin with and what to keep after each event."""
    tiny = MoEModel.from_config(small_config(layers=3, experts=4, top_k=2))
    trace = Trace.in_memory(tiny, *synthesize_rows(tiny, 12, requests=1, seed=seed))
    recording = Recording(trace)
    decode = trace.phase == Phase.DECODE
    events = [
        frozenset((layer, int(expert)) for expert in trace.experts(layer)[row])
        for row in np.flatnonzero(decode)[first:]
        for layer in trace.layers
    ]
    everything = [(layer, expert) for layer in trace.layers for expert in range(4)]
    cost = dict.fromkeys(map(frozenset, combinations(everything, slots)), 0)
    for event in events:
        after: dict[frozenset[tuple[int, int]], int] = {}
        for held, paid in cost.items():
            paid += len(event - held)
            for kept in map(frozenset, combinations(held | event, slots)):
                after[kept] = min(after.get(kept, paid), paid)
        cost = after
    least = least_misses(recording, first, slots)
    assert least == (min(cost.values()) if events else 0)


def test_unpinned_apart_and_one_after_the_other_cost() -> None:
    trace = one_user()
    room = {"vram_bytes": room_for(5, 400), "policy": "lru", "serve": "copy"}
    base = plan_offload(trace, SMALL, MACHINE, **room).tok_s  # type: ignore[arg-type]
    for worse in (
        {"pinned": False},
        {"apart": True},
        {"overlap": False},
        {"launches": "compiled"},
        {"launches": "eager"},
    ):
        assert plan_offload(trace, SMALL, MACHINE, **room, **worse).tok_s < base  # type: ignore[arg-type]


def test_prefill_is_timed_apart_and_copied() -> None:
    trace = one_user()
    room = {"vram_bytes": room_for(5, 400), "policy": "lru"}
    plan = plan_offload(trace, SMALL, MACHINE, phase="prefill", **room)  # type: ignore[arg-type]
    assert (plan.phase, plan.serve) == ("prefill", "copy")
    assert plan.tokens == (trace.phase == Phase.PREFILL).sum()
    assert plan.rows[0].bytes_per_token["cpu"] == 0
    with pytest.raises(InputError, match="FLOP/s"):
        plan_offload(trace, SMALL, MACHINE, phase="prefill", serve="cpu", **room)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="decode or prefill"):
        plan_offload(trace, SMALL, MACHINE, phase="all", **room)  # type: ignore[arg-type]


def test_no_slots_at_all_miss_everything_in_both_tiers() -> None:
    trace = one_user()
    plan = plan_offload(
        trace,
        SMALL,
        MACHINE + "+nvme-gen4",
        vram_bytes=room_for(0.5, 400),
        policy="lru",
        ram_bytes=(4 << 30) + 20 * ROUTED,
    )
    row = plan.rows[0]
    assert (row.slots, row.hit_ratio, row.misses_per_token) == (0, 0, 9)
    assert 0 < row.drive_reads_per_token < 9


def test_whole_layers_hit_all_or_nothing() -> None:
    trace = one_user()
    dense = room_for(0, 400)
    plan = plan_offload(
        trace, SMALL, MACHINE, vram_bytes=dense + 37 * ROUTED, policy="whole-layers", serve="cpu"
    )
    row = plan.rows[0]
    assert (row.resident_layers, row.hit_ratio) == (2, pytest.approx(2 / 3))
    assert plan.memory.gpu.classes["experts"] == 32 * ROUTED
    assert not plan.traffic.missed[1:].any()
    assert (plan.traffic.missed[0] == 3).all()
    whole = plan_offload(trace, SMALL, MACHINE, policy=["whole-layers", "lru"])
    assert [r.hit_ratio for r in whole.rows if r.policy == "whole-layers"] == [1]
    other = MoEModel.from_config(small_config(layers=9, experts=32, top_k=6))
    plan = plan_offload(
        trace,
        other,
        MACHINE,
        vram_bytes=RESERVE + 10e6,
        policy="whole-layers",
        transfer="hit-ratio",
    )
    layers = plan.rows[0].resident_layers
    assert layers is not None
    assert plan.rows[0].hit_ratio == pytest.approx(layers / 8)


@pytest.mark.parametrize(
    ("contract", "policy", "scope"),
    [
        ("llamacpp", "lru", "layer"),
        ("freetoken", "lru", "global"),
        ("ktransformers", "frequency", "global"),
        ("vllm", "lfru", "layer"),
    ],
)
def test_engines_keep_their_rules(contract: str, policy: str, scope: str) -> None:
    trace = one_user()
    plan = plan_offload(
        trace,
        SMALL,
        MACHINE,
        vram_bytes=room_for(6, 400),
        policy=policy,
        contract=contract,
        scope=scope,
        serve="cpu",
    )
    assert plan.contract == contract
    assert plan.tok_s <= plan.tok_s_limit
    moves = plan.rows[0].bytes_per_token["link"] > 0
    assert moves == (contract != "ktransformers")
    assert plan.fit_steps == (len(one_user().step) // 4 if policy == "frequency" else 0)


def test_one_gib_more_is_worth_its_slots() -> None:
    trace = one_user()
    room = {"policy": "lru", "serve": "copy"}
    plan = plan_offload(trace, SMALL, MACHINE, vram_bytes=room_for(4, 400), **room)  # type: ignore[arg-type]
    more = plan_offload(
        trace,
        SMALL,
        MACHINE,
        vram_bytes=room_for(4, 400) + (1 << 30),
        **room,  # type: ignore[arg-type]
    )
    assert plan.gib_gain_tok_s == pytest.approx(more.tok_s - plan.tok_s)
    assert plan.gib_gain_tok_s > 0 == more.gib_gain_tok_s
    assert plan.gib_kv_tokens == (1 << 30) // SMALL.kv_bytes_per_token_per_rank()


def test_what_does_not_fit_is_infeasible() -> None:
    trace = one_user(60)
    with pytest.raises(InfeasibleError, match="more than there is"):
        plan_offload(trace, SMALL, MACHINE, vram_bytes=RESERVE)
    with pytest.raises(InfeasibleError, match="nvme"):
        plan_offload(trace, SMALL, MACHINE, vram_bytes=room_for(4, 60), ram_bytes=4 << 30)


def test_contradictions_are_refused() -> None:
    trace = one_user(60)
    with pytest.raises(InputError, match="exclusive"):
        plan_offload(trace, SMALL, MACHINE, exclusive=True, policy="lru")
    with pytest.raises(InputError, match="launches 'fast' is not one of graph"):
        plan_offload(trace, SMALL, MACHINE, launches="fast")
    with pytest.raises(InputError, match="no host is named"):
        plan_offload(trace, SMALL, "rtx-4090", serve="cpu")
    other = MoEModel.from_config(small_config(layers=9, experts=32, top_k=4))
    with pytest.raises(InputError, match="--transfer hit-ratio"):
        plan_offload(trace, other, MACHINE)
    with pytest.raises(InputError, match="transfer 'x'"):
        plan_offload(trace, other, MACHINE, transfer="x")


def test_a_transfer_keeps_the_hit_ratio_at_equal_residency() -> None:
    trace = one_user()
    other = MoEModel.from_config(small_config(layers=9, experts=32, top_k=6))
    here = plan_offload(trace, SMALL, MACHINE, vram_bytes=room_for(4, 400), policy="lru")
    dense = sum(size for name, size in weight_bytes(other, "bf16").items() if name != "routed")
    cache = other.cache_bytes_per_sequence_per_rank(400)
    room = RESERVE + dense + cache + 8 * 8 * ROUTED
    there = plan_offload(trace, other, MACHINE, vram_bytes=room, policy="lru", transfer="hit-ratio")
    assert (there.slots, there.transfer, there.provenance) == (8, "hit-ratio", "assumed")
    assert_allclose(there.rows[0].hit_ratio, here.rows[0].hit_ratio, atol=0.03)
    assert_allclose(there.rows[0].misses_per_token, (1 - there.rows[0].hit_ratio) * 8 * 6)
    assert any("Everything here is assumed" in line for line in there.assumptions)


def test_a_transfer_lies_between_the_nearest_sizes() -> None:
    trace = one_user()
    other = MoEModel.from_config(small_config(layers=5, experts=64, top_k=3))
    dense = sum(size for name, size in weight_bytes(other, "bf16").items() if name != "routed")
    base = RESERVE + dense + other.cache_bytes_per_sequence_per_rank(400)
    sizes = [base + 4 * slots * ROUTED for slots in range(16, 21)]  # 4 to 5 of 16 recorded
    plan = plan_offload(
        trace, other, MACHINE, vram_bytes=sizes, policy="lru", transfer="hit-ratio", serve="copy"
    )
    hits = [row.hit_ratio for row in sorted(plan.rows, key=lambda row: row.slots)]
    assert_allclose(np.diff(hits), (hits[-1] - hits[0]) / 4, atol=0.002)
    assert hits[-1] > hits[0]


def test_a_recording_without_positions_says_so() -> None:
    rows, requests = synthesize_rows(SMALL, 100, requests=1)
    blind = Trace.in_memory(
        SMALL, replace(rows, position=np.full_like(rows.position, -1)), requests
    )
    none, whole = (
        plan_offload(blind, SMALL, MACHINE, policy="lru", context_tokens=context)
        for context in (None, 4096)
    )
    assert (none.context_tokens, none.work.kv_bytes) == (0, 0)
    assert any("give --context" in line for line in none.assumptions)
    assert whole.work.kv_bytes == 4096 * SMALL.kv_bytes_per_token_per_rank()
    assert any("whole context" in line for line in whole.assumptions)


def test_the_command_answers_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Path(__file__).parents[2] / "traces" / "tiny-m3.moetrace"
    command = [
        "offload",
        str(tiny),
        "minimax-m3",
        "--hardware",
        MACHINE,
        "--vram",
        "24GB",
        "--ram",
        "512GB",
        "--precision",
        "q4_k",
        "--policy",
        "lru,static",
        "--max-num-seqs",
        "1",
        "--context",
        "4096",
    ]
    assert main(command) == 2
    assert "--transfer" in capsys.readouterr().err
    assert main([*command, "--transfer", "hit-ratio", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert {"tok_s", "tok_s_low", "tok_s_high", "bound", "share"} <= set(result)
    assert [row["policy"] for row in result["rows"]] == ["static", "lru"]
    assert main([*command, "--transfer", "hit-ratio"]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "Assumed:" in shown
    assert main([*command, "--transfer", "hit-ratio", "--vram", "4GB"]) == 4
    assert "GiB more than there is" in capsys.readouterr().err
