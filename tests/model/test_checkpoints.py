"""Bytes of whole checkpoints against what was published of their files."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from moeprof.model import MoEModel, load_precision, precision_names, weight_bytes
from moeprof.model.presets import read_preset

GB, GIB = 10**9, 2**30
# (precision, published bytes, tolerance, source). The tolerance is half of the last digit where
# the published figure stands for the tensors alone; files also hold headers, tokenizers, and, in
# GGUF, a projector. 2 % where the figure is of that kind or the map is fitted to it.
M3 = [
    ("bf16", 854_172_958_720, 0, "https://huggingface.co/MiniMaxAI/MiniMax-M3, 59 shards"),
    ("mxfp8", 413.27 * GIB, 0.005 * GIB, "https://huggingface.co/MiniMaxAI/MiniMax-M3-MXFP8"),
    ("nvfp4", 250.1 * GB, 0.05 * GB, "https://huggingface.co/nvidia/MiniMax-M3-NVFP4"),
    ("mxfp4", 237 * GB, 0.5 * GB, "https://huggingface.co/olka-fi/MiniMax-M3-MXFP4"),
    ("nvfp4-routed", 260 * GB, 0.5 * GB, "https://huggingface.co/bullerwins/MiniMax-M3-NVFP4"),
    ("nvfp4-experts", 256 * GB, 0.5 * GB, "https://huggingface.co/Mapika/MiniMax-M3-NVFP4"),
    ("nvfp4-down", 259 * GB, 0.02, "https://huggingface.co/brandonmusic/MiniMax-M3-NVFP4"),
    ("nvfp4-down", 241 * GIB, 0.5 * GIB, "https://huggingface.co/brandonmusic/MiniMax-M3-NVFP4"),
    ("int4_awq", 225 * GIB, 0.02, "https://huggingface.co/spectator2026/MiniMax-M3-AWQ-int4"),
    ("int4_awq", 241 * GB, 0.02, "https://huggingface.co/cyankiwi/MiniMax-M3-AWQ-4bit, loaded"),
    ("bf16-gguf", 793.5 * GIB, 0.05 * GIB, "https://huggingface.co/unsloth/MiniMax-M3-GGUF"),
    ("bf16-gguf", 855 * GB, 0.02, "https://unsloth.ai/docs/models/minimax-m3"),
    ("ud-q4_k_xl", 265 * GB, 0.02, "https://unsloth.ai/docs/models/minimax-m3"),
    ("ud-iq4_xs", 208 * GB, 0.02, "https://unsloth.ai/docs/models/minimax-m3"),
    ("ud-iq3_xxs", 159 * GB, 0.02, "https://unsloth.ai/docs/models/minimax-m3"),
    ("ud-iq1_m", 128 * GB, 0.02, "https://unsloth.ai/docs/models/minimax-m3"),
    ("iq3_s-aessedai", 159 * GB, 0.02, "https://huggingface.co/AesSedai/MiniMax-M3-GGUF"),
    ("mlx8", 453 * GB, 0.5 * GB, "https://huggingface.co/pipenetwork/MiniMax-M3-MLX-6bit"),
    ("mlx6", 346 * GB, 0.5 * GB, "https://huggingface.co/pipenetwork/MiniMax-M3-MLX-6bit"),
    ("mlx4", 240 * GB, 0.5 * GB, "https://huggingface.co/pipenetwork/MiniMax-M3-MLX-6bit"),
    ("mlx3", 186 * GB, 0.5 * GB, "https://huggingface.co/pipenetwork/MiniMax-M3-MLX-6bit"),
    ("mlx3_6", 191 * GB, 0.5 * GB, "https://huggingface.co/pipenetwork/MiniMax-M3-MLX-6bit"),
]
# (preset, precision, bytes of all tensors with the prediction modules, relative tolerance). Small
# differences: norms in FP32 (DeepSeek-V3.2), rotary frequencies that Kimi stores, and the shapes
# beside its packed INT4.
OTHERS = [
    ("deepseek-v3", "fp8_block", 688_574_839_360, 0),
    ("deepseek-r1", "fp8_block", 688_574_839_360, 0),
    ("deepseek-v3.2", "fp8_block", 642.12 * GIB, 1e-5),
    ("kimi-k2", "fp8_block", 1_029_173_256_720, 1e-8),
    ("kimi-k2.5", "int4", 595_148_192_736, 1e-5),
    ("minimax-m2", "fp8_block", 214.32 * GIB, 3e-5),
    ("gpt-oss-120b", "mxfp4", 65_248_815_744, 0),
    ("gpt-oss-20b", "mxfp4", 13_761_264_768, 0),
    ("glm-4.5", "bf16", 716_681_196_792, 1e-4),
    ("qwen3-235b-a22b", "bf16", 470_187_269_120, 0),
    ("qwen3.5-397b-a17b", "bf16", 806_795_875_168, 1e-7),
]


@pytest.fixture(scope="module")
def m3() -> MoEModel:
    return MoEModel.preset("minimax-m3")


@pytest.mark.parametrize(("precision", "published", "tolerance", "source"), M3)
def test_published_m3_checkpoints(
    m3: MoEModel, precision: str, published: float, tolerance: float, source: str
) -> None:
    allowed = tolerance * published if 0 < tolerance < 1 else tolerance
    assert abs(sum(weight_bytes(m3, precision).values()) - published) <= allowed
    assert source.startswith("https://")


def test_the_shares_of_a_mix(m3: MoEModel) -> None:
    """A listing of UD-IQ4_XS by type: 56 % of the bytes in IQ3_S, 35 % in IQ4_XS."""
    mix = load_precision("ud-iq4_xs", m3)
    sizes: Counter[str] = Counter()
    for group in m3.tensors:
        sizes[mix.format_of(group).name] += mix.group_bytes(group)
    assert sizes["iq3_s"] / sizes.total() == pytest.approx(0.56, abs=0.02)
    assert sizes["iq4_xs"] / sizes.total() == pytest.approx(0.35, abs=0.01)


def test_a_pruned_m3() -> None:
    """64 experts a layer in MXFP8: 231 GB (https://huggingface.co/morriszjm)."""
    config: dict[str, Any] = read_preset("minimax-m3")
    config = {**config, "text_config": {**config["text_config"], "num_local_experts": 64}}
    pruned = MoEModel.from_config(config)
    assert sum(weight_bytes(pruned, "mxfp8").values()) == pytest.approx(231 * GB, abs=0.5 * GB)


@pytest.mark.parametrize(("preset", "precision", "published", "tolerance"), OTHERS)
def test_published_checkpoints_of_other_models(
    preset: str, precision: str, published: float, tolerance: float
) -> None:
    model = MoEModel.preset(preset)
    loaded = load_precision(precision, model)
    assert loaded.provenance == "specified"
    size = sum(weight_bytes(model, loaded).values())
    size += sum(loaded.group_bytes(group) for group in model.prediction_tensors)
    assert abs(size - published) <= tolerance * published


def test_every_published_map_of_m3_is_held_against_its_size() -> None:
    tested = {row[0] for row in M3} | {row[1] for row in OTHERS}
    assert tested == set(precision_names())
