"""What is advised is what the projection says, and no target that is looser costs more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof import LatencyTargets, advise_deployment, load_model, plan_traffic, project_deployment
from moeprof.errors import InputError
from moeprof.hardware import load_hardware
from moeprof.projection import shipped_laws
from moeprof.projection.advice import Advice, Option
from moeprof.projection.advice.candidate import MOST_REQUESTS
from moeprof.projection.advice.formats import runnable_precisions
from moeprof.projection.advice.search import Search, best_splits, clusters_of
from moeprof.projection.advice.splits import list_splits
from moeprof.projection.advice.targets import longest_request
from moeprof.report.text.advice import advice_text, options_table

M3 = load_model("minimax-m3")
TRAFFIC = plan_traffic(M3, input_len=2048, output_len=512)


def advised(
    hardware: str = "8xh200,4xb200",
    tpot: float | None = 30,
    ttft: float | None = 2000,
    **how: object,
) -> Advice:
    targets = LatencyTargets(tpot, ttft, bool(how.pop("sure", False)))
    return advise_deployment(M3, hardware, targets, TRAFFIC, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def advice() -> Advice:
    return advised()


def again(option: Option, concurrency: int) -> tuple[bool, float, float]:
    """(fits, TPOT, TTFT) as `project` has them."""
    split = option.parallelism
    found = project_deployment(
        M3,
        option.hardware,
        precision=option.precision,
        tp=split.tp,
        ep=split.ep,
        dp=split.dp,
        pp=split.pp,
        engine=option.engine,
        kv_dtype=option.kv_dtype,
        concurrency=concurrency,
        input_len=TRAFFIC.input_len,
        output_len=TRAFFIC.output_len,
    )
    assert found.tpot_ms is not None and found.ttft_ms is not None
    return found.fits, found.tpot_ms.value, found.ttft_ms.value


def test_every_option_fits_and_meets_the_targets_when_projected(advice: Advice) -> None:
    assert len(advice.options) >= 6
    for option in advice.options:
        fits, tpot, ttft = again(option, option.concurrency)
        assert fits and tpot <= 30 and ttft <= 2000
        assert tpot == pytest.approx(option.tpot_ms.value)


def test_one_request_more_breaks_what_limits_an_option(advice: Advice) -> None:
    for option in advice.options:
        fits, tpot, ttft = again(option, option.concurrency + option.parallelism.dp)
        broken = {"memory": not fits, "tpot": tpot > 30, "ttft": ttft > 2000}
        assert option.limit == "requests" or broken[option.limit]
        assert option.limit != "requests" or option.concurrency == MOST_REQUESTS


def test_options_are_ordered_by_cost(advice: Advice) -> None:
    costs = [o.cost_per_million_tokens.value for o in advice.options if o.cost_per_million_tokens]
    assert len(costs) == len(advice.options) and costs == sorted(costs)
    best = advice.options[0]
    price = load_hardware(best.hardware).profile.figure("price_usd_per_gpu_hour").value
    assert costs[0] == pytest.approx(price * best.gpus / best.output_tok_s.value / 3600 * 1e6)


def test_the_shortcut_misses_no_split() -> None:
    """Memory is looked at for few splits; looking at it for all of them gives the same."""
    targets = LatencyTargets(60, 5000)
    search = Search(M3, ["8xh100", "2xb200"], "vllm", TRAFFIC, targets, shipped_laws())
    for group in search.groups():
        every = [option for option in (each.option() for each in group) if option is not None]
        every.sort(key=lambda option: -option.output_tok_s.value)
        found = best_splits(group, 2)
        assert [o.output_tok_s.value for o in found] == [o.output_tok_s.value for o in every[:2]]


@settings(max_examples=8, deadline=None)
@given(
    tpot=st.floats(5, 80), ttft=st.floats(200, 5000), more=st.floats(1, 4), later=st.floats(1, 4)
)
def test_looser_targets_never_cost_more(
    tpot: float, ttft: float, more: float, later: float
) -> None:
    tight = advised("4xb200", tpot, ttft, precisions=["nvfp4"])
    loose = advised("4xb200", tpot * more, ttft * later, precisions=["nvfp4"])
    if tight.found:
        mine, its = (each.options[0].cost_per_million_tokens for each in (tight, loose))
        assert mine and its and its.value <= mine.value * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    requests=st.integers(1, MOST_REQUESTS - 1), split=st.sampled_from(list_splits(M3, 8, "vllm"))
)
def test_more_requests_wait_longer_and_make_more_tokens(requests: int, split: object) -> None:
    """What the bisection and the order of the search rest on."""
    search = Search(M3, ["8xh200"], "vllm", TRAFFIC, LatencyTargets(1.0, 1.0), shipped_laws())
    group = next(iter(search.groups()))
    each = next(c for c in group if c.deployment.parallelism == split)
    assert each.miss(requests) <= each.miss(requests + 1)
    assert each.tokens_per_s(requests) <= each.tokens_per_s(requests + 1)


def test_sure_options_hold_at_the_upper_end() -> None:
    sure, middle = advised(sure=True), advised()
    assert all(option.sure for option in sure.options)
    for option in sure.options:
        assert option.tpot_ms.high and option.tpot_ms.high <= 30
    assert not middle.options[0].sure
    assert middle.options[0].output_tok_s.value > sure.options[0].output_tok_s.value


def test_the_nearest_says_by_how_much_it_misses() -> None:
    found = advised("8xh200", tpot=2)
    assert not found.found and found.nearest is not None and found.nearest.option is not None
    tpot = again(found.nearest.option, 1)[1]
    assert found.nearest.factor == pytest.approx(tpot / 2)
    assert f"{tpot / 2:.2f} x" in found.reason


def test_holds_says_no_where_not_even_the_middle_meets_the_targets() -> None:
    found = advised("8xh200", tpot=2)
    assert found.nearest is not None and found.nearest.option is not None
    option = found.nearest.option
    assert option.ttft_ms is not None and " no\n" in advice_text(found)
    tpot, ttft = option.tpot_ms.value, option.ttft_ms.value
    for targets, holds in (
        (LatencyTargets(tpot * 1.01, ttft * 1.01), "middle"),
        (LatencyTargets(tpot * 0.99, ttft * 1.01), "no"),
        (LatencyTargets(tpot * 1.01, ttft * 0.99), "no"),
    ):
        assert options_table([option], targets).split()[-1] == holds
    assert options_table(advised(sure=True).options[:1], LatencyTargets(30, 2000)).endswith("yes")


def test_what_fits_nowhere_says_what_is_short() -> None:
    found = advised("4xrtx-4090")
    assert found.nearest is not None and found.nearest.option is None
    assert found.nearest.short_bytes > 2**30
    assert "nothing fits" in found.reason and "--consumer" not in found.reason
    hosted = advised("4xrtx-4090+epyc-9005-12ch-6000")
    assert "--consumer" in hosted.reason


def test_bought_machines_are_written_off_and_what_has_no_price_comes_last() -> None:
    bought = advised("4xgb10,8xmi355x", tpot=None, ttft=None)
    owned = next(option for option in bought.options if "gb10" in option.hardware)
    assert owned.cost_per_million_tokens is not None
    assert "written off over 3 years" in owned.cost_per_million_tokens.source
    hours = 3 * 8760 * 0.5
    busy = 4 * (3999 / hours + 0.140 * 0.15)
    rate = owned.output_tok_s.value
    assert owned.cost_per_million_tokens.value == pytest.approx(busy / rate / 3600 * 1e6)
    assert [o.cost_per_million_tokens is None for o in bought.options] == sorted(
        o.cost_per_million_tokens is None for o in bought.options
    )
    energy = owned.energy_wh_per_million_tokens
    assert energy and energy.value == pytest.approx(4 * 140 / rate / 3600 * 1e6)


def test_a_bare_name_is_one_to_eight_of_it() -> None:
    assert [cluster.gpus for cluster in clusters_of("b200")] == list(range(1, 9))
    assert [cluster.gpus for cluster in clusters_of("2x8xb200")] == [16]


def test_splits_use_every_gpu_and_whole_heads() -> None:
    splits = list_splits(M3, 6, "vllm")
    assert all(split.ranks == 6 and 64 % split.tp == 0 for split in splits)
    assert {split.ep for split in list_splits(M3, 8, "vllm")} == {1, 8}
    assert all(split.pp == 1 for split in list_splits(M3, 8, "vllm"))
    assert max(split.pp for split in list_splits(M3, 16, "vllm", nodes=2)) == 2
    assert max(split.pp for split in splits) > 1  # 64 heads do not split 6 ways
    assert list_splits(M3, 2, "llamacpp")[0].pp == 2
    assert list_splits(M3, 2, "mlx") == []
    assert all(s.dp == 1 or s.tp == 1 for s in list_splits(M3, 8, "trtllm"))
    dense = load_model("llama-3.1-70b")
    assert all(split.ep == 1 for split in list_splits(dense, 8, "vllm"))


def test_gpus_run_what_they_have_kernels_for() -> None:
    def names(gpu: str, engine: str) -> list[str]:
        return runnable_precisions(M3, load_hardware(gpu).profile, engine)

    assert names("h200", "vllm") == ["bf16", "mxfp8", "mxfp4", "int4_awq"]
    assert names("b200", "vllm") == ["bf16", "mxfp8", "nvfp4", "mxfp4", "int4_awq"]
    assert "mxfp8" not in names("h200", "sglang") and "mxfp8" in names("mi300x", "sglang")
    assert names("mi355x", "trtllm") == []
    assert names("b200", "trtllm") == ["bf16", "mxfp8", "nvfp4"]
    assert names("h100", "ktransformers") == ["mxfp8"]
    deepseek, gpu = load_model("deepseek-v3"), load_hardware("h200").profile
    assert runnable_precisions(deepseek, gpu, "vllm") == ["fp8_block"]  # as published
    assert "q4_k" in runnable_precisions(deepseek, gpu, "llamacpp")  # by habit
    assert all(name.startswith(("ud", "iq", "bf16-gguf")) for name in names("rtx-4090", "llamacpp"))
    assert names("m3-ultra-512gb", "mlx") == ["mlx8", "mlx6", "mlx4", "mlx3", "mlx3_6"]


def test_a_workload_gives_the_mean_request() -> None:
    traffic = plan_traffic(M3, workload_name="rag")
    assert traffic.input_len == pytest.approx(2943.6, rel=0.02)
    assert 0 < traffic.cached_len < traffic.input_len
    assert plan_traffic(M3, workload_name="rag", output_len=7).output_len == 7
    assert longest_request(M3, "rag") == 7712 + 2183
    assert longest_request(load_model("llama-3.1-70b"), "long-context") == 131_072
    assert longest_request(M3, None) is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tpot": 0}, "tpot_ms is 0"),
        ({"ttft": float("nan")}, "ttft_ms is nan"),
        ({"hardware": " , "}, "names nothing"),
        ({"engine": "vlm"}, "engine 'vlm'"),
        ({"precisions": ["ud-iq1_m"]}, "vllm does not run"),
    ],
)
def test_bad_input_is_one_line(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        advised(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="none"):
        plan_traffic(M3, input_len=0)


def test_nothing_is_said_twice(advice: Advice) -> None:
    kinds = [(option.hardware, option.precision) for option in advice.options]
    assert len(kinds) == len(set(kinds))
    assert isinstance(advice.to_dict()["options"][0]["output_tok_s"], dict)
    assert "deployment" not in advice.to_dict()["options"][0]
    assert replace(advice, options=[]).found is False
