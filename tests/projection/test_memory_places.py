"""Where a deployment puts what: pipeline stages, second copies, slots, host memory, drafts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.model import MoEModel, load_precision, weight_bytes
from moeprof.projection import MemoryLedger, project_memory
from moeprof.projection.memory import engine_names, load_draft, stage_models

GIB = 2**30
M3 = MoEModel.preset("minimax-m3")
LLAMA = MoEModel.preset("llama-3.1-70b")
DEEPSEEK = MoEModel.preset("deepseek-v3")
HYBRID = MoEModel.preset("qwen3.5-397b-a17b")
GPT_OSS = MoEModel.preset("gpt-oss-120b")
MODELS = st.sampled_from([M3, LLAMA, DEEPSEEK, HYBRID, GPT_OSS])


def ledger(hardware: str = "8xh200", **options: Any) -> MemoryLedger:
    return project_memory(M3, hardware, **options)


@given(MODELS, st.integers(1, 12))
def test_stages_together_are_the_model(model: MoEModel, pp: int) -> None:
    stages = stage_models(model, pp)
    assert sum(stage.layers for stage in stages) == model.layers
    assert sum(len(stage.moe_layers) for stage in stages) == len(model.moe_layers)
    for name, size in weight_bytes(model, "bf16").items():
        assert sum(weight_bytes(stage, "bf16")[name] for stage in stages) == size
    kept = [stage.cache_bytes_per_sequence_per_rank(4096) for stage in stages]
    assert sum(kept) == model.cache_bytes_per_sequence_per_rank(4096)


def test_stages_are_cut_as_vllm_cuts_them() -> None:
    """get_pp_indices: the remainder goes one each to the stages before the last."""
    assert [stage.layers for stage in stage_models(LLAMA, 3)] == [27, 27, 26]
    assert [stage.layers for stage in stage_models(M3, 8)] == [7, 7, 7, 8, 8, 8, 8, 7]
    first, *_, last = stage_models(M3, 4)
    names = {stage: {g.name for g in stage.tensors} for stage in (first, last)}
    assert "embed_tokens" in names[first] and "lm_head" not in names[first]
    assert "lm_head" in names[last] and "embed_tokens" not in names[last]
    assert first.moe_layers == tuple(range(3, 15))


def test_the_fullest_stage_speaks_for_all() -> None:
    found = ledger(precision="nvfp4", tp=2, pp=4, tokens=10**6)
    assert found.stages[found.stage].total_bytes == found.total.value
    assert found.total.value == max(stage.total_bytes for stage in found.stages)
    assert [stage.first_layer for stage in found.stages] == [0, 15, 30, 45]
    full = ledger(precision="nvfp4", tp=2, pp=4, tokens=found.max_kv_tokens)
    assert full.fits
    over = ledger(precision="nvfp4", tp=2, pp=4, tokens=found.max_kv_tokens + 1)
    assert not over.fits


def test_kv_of_a_layer_split_over_unequal_cards() -> None:
    """llama.cpp at 96,000 tokens: 4078, 3515, 3281 and 1406 MiB of context on cards with 18, 15,
    14 and 6 layers, index keys in FP32 (https://github.com/ggml-org/llama.cpp/pull/26297)."""
    split = [18, 15, 14, 6, 7]
    found = ledger(pp=5, stage_layers=split, tokens=96_000, kv_dtype="fp16", index_dtype="fp32")
    kept = [stage.kv_bytes / 2**20 for stage in found.stages]
    assert kept[:4] == pytest.approx([4078, 3515, 3281, 1406], abs=1)


def test_second_copies_are_whole_experts() -> None:
    one = M3.bytes_per_expert("nvfp4") * 57
    plain, doubled = (ledger(precision="nvfp4", tp=8, ep=8, redundant=r) for r in (0, 32))
    assert plain.classes["redundant"].value == 0
    assert doubled.classes["redundant"].value == 4 * one  # 160 slots over 8 ranks
    assert doubled.classes["routed"] == plain.classes["routed"]
    assert doubled.max_kv_tokens < plain.max_kv_tokens


@given(st.integers(0, 128), st.sampled_from([(1, 1), (4, 1), (8, 8), (4, 2)]))
def test_every_expert_is_on_gpus_or_in_the_host(slots: int, split: tuple[int, int]) -> None:
    tp, ep = split
    found = ledger("8xh200", precision="mxfp8", tp=tp, ep=ep, cache_slots=slots)
    whole = weight_bytes(M3, "mxfp8")["routed"]
    on_gpus = found.classes["routed"].value * tp
    assert on_gpus + found.host.value == pytest.approx(whole, rel=1e-9)
    assert found.max_cache_slots == ledger(precision="mxfp8", tp=tp, ep=ep).max_cache_slots


def test_the_most_slots_fit_and_one_more_does_not() -> None:
    card: dict[str, Any] = {"precision": "ud-q4_k_xl", "engine": "llamacpp", "tokens": 8192}
    most = ledger("rtx-5090", **card).max_cache_slots
    assert most is not None and 0 < most < 128
    fits = [ledger("rtx-5090", **card, cache_slots=n).fits for n in (most, most + 1)]
    assert fits == [True, False]


def test_a_host_too_small_is_an_answer() -> None:
    asked: dict[str, Any] = {"precision": "mxfp4", "cache_slots": 8, "engine": "ktransformers"}
    unknown = ledger("rtx-pro-6000", **asked)
    assert unknown.fits and unknown.host_capacity is None
    assert unknown.host.value == weight_bytes(M3, "mxfp4")["routed"] * 120 / 128
    assert not ledger("rtx-pro-6000", **asked, ram_bytes=191 * GIB).fits
    assert ledger("rtx-pro-6000", **asked, ram_bytes=192 * GIB).fits
    named = ledger("rtx-pro-6000+epyc-9005-12ch-6000", **asked)
    assert named.host_capacity is not None and named.fits


@pytest.mark.parametrize(("name", "heads"), [("eagle3", 64), ("EAGLE3-GQA", 4)])
def test_a_draft_loads_weights_and_keeps_kv(name: str, heads: int) -> None:
    plain, drafted = (
        ledger(precision="nvfp4", tp=2, kv_dtype="fp8", draft=d) for d in (None, name)
    )
    assert drafted.kv_bytes_per_token - plain.kv_bytes_per_token == 2 * heads // 2 * 128
    weights = drafted.classes["draft"]
    assert weights.value == load_draft(name, M3).parameters.value  # BF16 over two ranks
    assert weights.low is not None and weights.low < weights.value
    assert drafted.max_kv_tokens < plain.max_kv_tokens


def test_a_checkpoint_without_its_indexer_keeps_no_index_keys() -> None:
    with_it, without = (
        ledger(precision=name, engine="llamacpp") for name in ("iq3_s-aessedai", "ud-q4_k_xl")
    )
    assert with_it.kv_bytes_per_token - without.kv_bytes_per_token == 57 * 128 * 2
    assert without.kv_bytes_per_token == 60 * 2 * 4 * 128 * 2


def test_a_draft_stands_on_the_last_stage() -> None:
    found = ledger("8xh200", precision="nvfp4", pp=2, draft="eagle3")
    without = ledger("8xh200", precision="nvfp4", pp=2)
    more = [
        a.total_bytes - b.total_bytes for a, b in zip(found.stages, without.stages, strict=True)
    ]
    assert more[0] == 0 < more[1]


@pytest.mark.parametrize("engine", engine_names())
def test_engines_keep_something_and_say_so(engine: str) -> None:
    found = ledger("8xh200", precision="nvfp4", tp=8, engine=engine)
    own = [found.classes[name] for name in ("activations", "graphs", "context", "reserve")]
    assert sum(size.value for size in own) > 0
    assert all(size.source and size.provenance == "assumed" for size in own)
    assert found.engine == engine


def test_shares_mean_what_each_engine_means() -> None:
    asked: dict[str, Any] = {"precision": "nvfp4", "tp": 8, "utilization": 0.8}
    card = ledger(engine="vllm", **asked)
    assert card.classes["reserve"].value == pytest.approx(0.2 * card.capacity.value)
    static = ledger(engine="sglang", **asked)
    own = sum(static.classes[n].value for n in ("activations", "graphs", "context", "reserve"))
    assert own == pytest.approx(0.2 * static.capacity.value)
    free = ledger(engine="trtllm", **asked)
    pool = free.free_bytes
    assert free.classes["reserve"].value == pytest.approx(0.25 * pool)


def sglang_reserve_mib(card_gib: float, ranks: int, dp: int, drafts: bool) -> float:
    """SGLang's rule (python/sglang/srt/server_args.py) in plain steps."""
    rows = [
        (160, 16_384, 512, 512),
        (60, 8192, 256, 512),
        (35, 4096, 32, 160),
        (20, 2048, 24, 80),
        (0, 2048, 8, 8),
    ]
    _, chunk, few, many = next(row for row in rows if card_gib >= row[0])
    requests = few if ranks < 4 else many
    reserved = 512 + max(chunk, 2048) * 1.5 + requests * 2 + ranks / 8 * 1024
    if dp > 1:
        reserved += requests * dp * (4.5 if requests > 300 else 3)
    if card_gib > 60:
        reserved = max(reserved, 10 * 1024)
    return reserved + (2 * 1024 if drafts else 0)


@pytest.mark.parametrize("hardware", ["rtx-4090", "l40s", "h100", "h200", "b200"])
@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (8, 1), (1, 8), (2, 4)])
@pytest.mark.parametrize("drafts", [False, True])
def test_what_sglang_sets_aside(hardware: str, tp: int, dp: int, drafts: bool) -> None:
    found = ledger(
        f"8x{hardware}", tp=tp, dp=dp, engine="sglang", draft="eagle3" if drafts else None
    )
    own = sum(found.classes[n].value for n in ("activations", "graphs", "context", "reserve"))
    expected = sglang_reserve_mib(found.capacity.value / GIB, tp * dp, dp, drafts)
    assert own / 2**20 == pytest.approx(expected)


def test_activations_read_off_a_log_replace_the_assumption() -> None:
    found = ledger(precision="nvfp4", tp=8, activation_bytes=10 * GIB)
    assert found.classes["activations"].value == 10 * GIB
    assert found.classes["activations"].provenance == "specified"


def test_steps_of_more_tokens_take_more_activations() -> None:
    sizes = [
        ledger(precision="nvfp4", tp=8, max_num_batched_tokens=n).classes["activations"].value
        for n in (8192, 16_384, 24_576)
    ]
    assert sizes[0] == ledger(precision="nvfp4", tp=8).classes["activations"].value
    assert sizes[1] - sizes[0] == pytest.approx(sizes[2] - sizes[1])


@pytest.mark.parametrize(("tp", "mode"), [(8, "weights"), (1, "weights"), (4, "data")])
def test_the_longest_video_as_vllm_tries_it(tp: int, mode: str) -> None:
    """500 frames of 602,112 pixels, two frames and 14 x 14 pixels a patch; what is live at the
    fullest point of the tower, by hand: attention on one rank, the projector on several."""
    asked: dict[str, Any] = {"precision": "nvfp4", "tp": tp, "mm_encoder_tp_mode": mode}
    found = ledger(**asked, encoder_profile=True).classes["activations"]
    patches, pixels, hidden, wide = 250 * 3072, 3 * 2 * 14 * 14, 1280, 6144
    attention = hidden + 3 * hidden + 2 * hidden + 2 * 2 * 2 * hidden
    projector = wide / tp + 2 * wide
    live = pixels + hidden + (attention if tp == 1 or mode == "data" else projector)
    assert found.value == pytest.approx(2 * patches * live)
    assert found.low is not None and found.low < found.value
    plain = ledger(**asked).classes["activations"]
    text_only = ledger(**asked, encoder_profile=True, language_model_only=True)
    assert text_only.classes["activations"] == plain


def test_a_model_whose_longest_video_is_unknown_has_none() -> None:
    asked: dict[str, Any] = {"precision": "int4", "tp": 8}
    model = MoEModel.preset("kimi-k2.5")
    plain, tried = (
        project_memory(model, "8xb200", **asked, encoder_profile=on) for on in (False, True)
    )
    assert plain.classes["activations"].value == tried.classes["activations"].value


def test_longest_context_and_most_requests() -> None:
    most = ledger("4xrtx-pro-6000", precision="mxfp4", tp=4)
    assert most.max_context == most.max_kv_tokens < M3.max_positions
    wide = ledger("8xb300", precision="nvfp4", tp=8)
    assert wide.max_context == M3.max_positions < wide.max_kv_tokens
    sliding = project_memory(GPT_OSS, "h100", precision="mxfp4")
    assert sliding.max_context > sliding.max_kv_tokens  # windows keep no more than themselves


@pytest.mark.parametrize(
    ("hardware", "options", "fits"),
    [
        ("3xdgx-spark", {"precision": "nvfp4", "tp": 3, "pad_heads": True}, True),
        ("4xdgx-spark", {"precision": "nvfp4", "tp": 4}, True),
        ("2xdgx-spark", {"precision": "nvfp4", "tp": 2}, False),
        ("m3-ultra-512gb", {"precision": "mlx8", "engine": "mlx"}, True),
        ("m3-ultra-256gb", {"precision": "mlx6", "engine": "mlx"}, False),
        ("strix-halo", {"precision": "ud-q4_k_xl", "engine": "llamacpp"}, False),
        ("strix-halo", {"precision": "iq1_s", "engine": "llamacpp"}, True),
        (
            "rtx-4090+desktop-2ch-ddr5-6000",
            {"precision": "iq1_s", "engine": "llamacpp", "cache_slots": 8},
            True,
        ),
    ],
)
def test_machines_at_home(hardware: str, options: dict[str, Any], fits: bool) -> None:
    assert ledger(hardware, **options).fits is fits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pp": 0}, "pp must be"),
        ({"pp": 61}, "needs 61 GPUs"),
        ({"pp": 2, "stage_layers": [30, 31]}, "are not 2 stages of the 60 layers"),
        ({"pp": 2, "stage_layers": [60, 0]}, "are not 2 stages"),
        ({"redundant": 4}, "only experts that go whole"),
        ({"redundant": -1, "tp": 8, "ep": 8}, "redundant must be"),
        ({"redundant": 128, "tp": 2, "ep": 2, "cache_slots": 4}, "exclude each other"),
        ({"redundant": 129, "tp": 2, "ep": 2}, "twice on a rank"),
        ({"cache_slots": 129}, "of the 128 experts a layer"),
        ({"cache_slots": -1}, "of the 128 experts a layer"),
        ({"engine": "vlm"}, "no engine 'vlm' is known"),
        ({"draft": "eagle9"}, "known: eagle3, eagle3-gqa"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be"),
        ({"mm_encoder_tp_mode": "rows"}, "weights or data"),
        ({"activation_bytes": -1}, "activation_bytes must be"),
        ({"ram_bytes": 1.5}, "ram_bytes must be"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ledger(**options)


def test_slots_on_a_machine_with_one_memory_are_refused() -> None:
    with pytest.raises(InputError, match="is its own host"):
        ledger("strix-halo", precision="iq1_s", cache_slots=8)


def test_precision_is_the_stages_own() -> None:
    precision = load_precision("nvfp4", M3)
    sizes = [stage.weights_bytes for stage in ledger(precision=precision, pp=4).stages]
    assert sum(sizes) == sum(weight_bytes(M3, precision).values())
