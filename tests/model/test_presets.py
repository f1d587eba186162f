"""Presets against what was published of their checkpoints, and what their caches take."""

from __future__ import annotations

import pytest

from moeprof.errors import ModelError
from moeprof.model import MoEModel, preset_names
from moeprof.model.presets import read_preset

# Values stored in the checkpoint: the "safetensors" count of https://huggingface.co/api/models/...
# of the repository that the preset names. For checkpoints in FP8 (DeepSeek, MiniMax-M2, Kimi K2)
# it counts block scales too, which are no parameters: below 0.01 %. MiniMax-M3's and Qwen3.5's are
# the bytes of their files, 4 a value of the router (M3), of the decay and the norm of linear
# attention (Qwen3.5), and 2 of all else.
STORED = {
    "deepseek-r1": 684_531_386_000,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2.5": 235_741_434_880,
    "deepseek-v3": 684_531_386_000,
    "deepseek-v3.2": 685_396_921_376,
    "glm-4.5": 358_337_791_296,
    "glm-5": 753_864_139_008,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "kimi-k2": 1_026_470_731_056,
    "kimi-k2.5": 1_026_879_376_368,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "minimax-m2": 228_703_644_928,
    "minimax-m2.5": 228_703_644_928,
    "minimax-m3": 427_040_140_160,
    "mixtral-8x7b": 46_702_792_704,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3.5-397b-a17b": (806_795_875_168 - 45 * (64 + 128) * 2) // 2,
}
WITH_SCALES = {"deepseek-r1", "deepseek-v3", "deepseek-v3.2", "kimi-k2"} | {
    "minimax-m2",
    "minimax-m2.5",
}
# Modules for multi-token prediction among them, as far as published: DeepSeek-V3's model card
# (671B and 14B); GLM-4.5 and GLM-5 stored less 355B and 744B.
PREDICTION = {"deepseek-v3": 14e9, "glm-5": 10e9}

# "Activated" as the model's name or card has it, in 1e9, and which tables the publisher counts
# beside what we call active: gpt-oss the head (arXiv 2508.10925, table 1), Qwen, Mixtral and OLMoE
# the embedding too, MiniMax and GLM neither.
ACTIVE = {
    "deepseek-r1": (37, ("head",)),
    "deepseek-v2-lite": (2.4, ("head",)),
    "deepseek-v2.5": (21, ("head",)),
    "deepseek-v3": (37, ("head",)),
    "deepseek-v3.2": (37, ("head",)),
    "glm-4.5": (32, ()),
    "glm-5": (40, ()),
    "gpt-oss-120b": (5.13, ("head",)),
    "gpt-oss-20b": (3.61, ("head",)),
    "kimi-k2": (32, ("head",)),
    "kimi-k2.5": (32, ("head",)),
    "minimax-m2": (10, ()),
    "minimax-m2.5": (10, ()),
    "minimax-m3": (23, ()),
    "mixtral-8x7b": (12.9, ("head", "embedding")),
    "olmoe-1b-7b": (1.3, ("head", "embedding")),
    "qwen1.5-moe-a2.7b": (2.7, ("head", "embedding")),
    "qwen2-57b-a14b": (14, ("head", "embedding")),
    "qwen3-235b-a22b": (22, ("head", "embedding")),
    "qwen3-30b-a3b": (3.3, ("head", "embedding")),
    "qwen3.5-397b-a17b": (17, ("head", "embedding")),
}


@pytest.mark.parametrize("name", preset_names())
def test_the_checkpoint_holds_what_we_count(name: str) -> None:
    model = MoEModel.preset(name)
    counted = model.parameters["total"] + model.prediction_parameters
    if name in WITH_SCALES:
        assert counted < STORED[name] < counted * 1.0001
    else:
        assert counted == STORED[name]


@pytest.mark.parametrize("name", PREDICTION)
def test_prediction_modules_stand_beside_the_model(name: str) -> None:
    model = MoEModel.preset(name)
    assert model.prediction_parameters == pytest.approx(PREDICTION[name], rel=0.05)
    assert sum(group.parameters for group in model.tensors) == model.parameters["total"]


@pytest.mark.parametrize("name", [name for name in preset_names() if name in ACTIVE])
def test_active_parameters_are_the_published_ones(name: str) -> None:
    """Within 5 %: the figures are rounded, and what they count differs by publisher."""
    published, tables = ACTIVE[name]
    parameters = MoEModel.preset(name).parameters
    counted = parameters["active"] + sum(parameters[table] for table in tables)
    assert counted == pytest.approx(published * 1e9, rel=0.05)


def test_every_moe_preset_has_its_published_figures() -> None:
    assert set(STORED) == set(preset_names())
    assert set(ACTIVE) == {name for name in preset_names() if MoEModel.preset(name).experts}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_names_a_public_source(name: str) -> None:
    assert read_preset(name)["_source"].startswith("https://huggingface.co/")


# GLM-5.2: GLM-5 with the indexers of 57 layers dropped (https://huggingface.co/zai-org/GLM-5.2).
GLM_52 = {
    "indexer_types": ["full" if i in {0, 1, *range(2, 78, 4)} else "shared" for i in range(78)]
}


def test_layers_may_share_an_indexer() -> None:
    model = MoEModel.from_config({**read_preset("glm-5"), **GLM_52})
    assert model.parameters["total"] + model.prediction_parameters == 753_329_940_480
    assert model.indexer is not None
    assert model.indexer.layers == 21


@pytest.mark.parametrize("tp", [1, 4, 8])
def test_a_latent_vector_stands_on_every_rank(tp: int) -> None:
    """DeepSeek-V3: 61 layers of 512 + 64 values, 70,272 bytes a token (arXiv 2412.19437)."""
    assert MoEModel.preset("deepseek-v3").kv_bytes_per_token_per_rank(tp) == 61 * 576 * 2
    sparse = MoEModel.preset("deepseek-v3.2")  # and an index key of 128 values a layer
    assert sparse.kv_bytes_per_token_per_rank(tp) == 61 * (576 + 128) * 2


def test_linear_attention_keeps_a_state_and_no_token() -> None:
    """Qwen3.5: 15 of 60 layers have keys and values, 2 heads of 256."""
    model = MoEModel.preset("qwen3.5-397b-a17b")
    assert model.kv_bytes_per_token_per_rank() == 15 * 2 * 2 * 256 * 2
    state = 45 * (64 * 128 * 128 * 4 + (2 * 16 * 128 + 64 * 128) * 3 * 2)
    assert model.state_bytes_per_sequence_per_rank() == state
    assert model.state_bytes_per_sequence_per_rank(4) == state // 4
    assert model.cache_bytes_per_sequence_per_rank(1000) == 1000 * 30_720 + state
    assert MoEModel.preset("glm-5").state_bytes_per_sequence_per_rank() == 0


def test_sliding_layers_hold_their_window_alone() -> None:
    """gpt-oss-20b: 12 of 24 layers look back 128 tokens; 8 heads of 64."""
    model = MoEModel.preset("gpt-oss-20b")
    layer = 2 * 8 * 64 * 2
    assert model.kv_bytes_per_token_per_rank() == 24 * layer
    assert model.cache_bytes_per_sequence_per_rank(100) == 100 * 24 * layer
    assert model.cache_bytes_per_sequence_per_rank(1000) == (1000 + 128) * 12 * layer
    with pytest.raises(ModelError, match="-1 tokens"):
        model.cache_bytes_per_sequence_per_rank(-1)
