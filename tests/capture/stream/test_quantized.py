"""A quantized checkpoint streams as the whole model that holds its decoded weights routes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import moeprof
from moeprof.capture import record
from moeprof.capture.stream.loading import Loader
from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.trace import open_trace

from . import quantizing
from .models import load, make, save
from .test_exactness import assert_same_rows, prompts_of, sequences

LINEAR = r"layers\..*(_proj|\.w[123])(\.weight)?$"  # and so neither routers nor norms
EXPERTS = r"layers\..*experts\.\d+\..*weight$"
WORDS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16}

# By name: the family, the format, what is quantized, and the configuration that comes with it.
PUBLISHED: dict[str, tuple[str, quantizing.Quantize, str, dict[str, Any]]] = {
    "DeepSeek's FP8": (
        "deepseek_v3",
        quantizing.fp8,
        LINEAR,
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [quantizing.BLOCK] * 2},
    ),
    "M3's MXFP8": (
        "m3_vl",
        quantizing.mxfp8,
        LINEAR,
        {"quant_method": "mxfp8", "weight_block_size": [1, 32], "ignored_layers": ["lm_head"]},
    ),
    "gpt-oss' MXFP4": (
        "gpt_oss",
        quantizing.mxfp4,
        r"experts\.(gate_up|down)_proj$",
        {"quant_method": "mxfp4"},
    ),
    "MXFP4, two a byte": (
        "mixtral",
        quantizing.mxfp4_bytes,
        r"layers\..*[qkvo]_proj\.weight$",
        {"quant_method": "quark"},
    ),
    "M3's NVFP4": (
        "m3_vl",
        quantizing.nvfp4,
        EXPERTS,
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ),
    "NVFP4, packed": (
        "qwen3",
        quantizing.nvfp4_packed,
        EXPERTS,
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    ),
    "FP8 by rows": (
        "glm4_moe",
        quantizing.fp8_rows,
        LINEAR,
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ),
    "AWQ": (
        "mixtral",
        quantizing.awq,
        LINEAR,
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
    ),
    "GPTQ": (
        "qwen3",
        quantizing.gptq,
        LINEAR,
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
    ),
    "INT4, packed": (
        "m3",
        quantizing.packed,
        EXPERTS,
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": WORDS}}},
    ),
}


@pytest.fixture(scope="module")
def pair(
    torch: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """A function that gives the checkpoint in a format, and the plain one of what it decodes to."""
    root, done = tmp_path_factory.mktemp("quantized"), {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in done:
            family, format_, which, settings = PUBLISHED[name]
            folder = root / str(len(done))
            plain = save(make(family), folder / "plain")
            done[name] = quantizing.quantize(
                plain, folder, format_, settings, re.compile(which).search
            )
        return done[name]

    return get


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_routes_as_the_decoded_model_does(
    pair: Callable[[str], tuple[Path, Path]], name: str, tmp_path: Path, torch: Any
) -> None:
    quantized, decoded = pair(name)
    ids = sequences(5, 12)
    model, extras = load(decoded), {"weights": True, "margins": True}
    with record(model, tmp_path / "hooks", **extras) as done, torch.no_grad():
        for row in ids:
            model(input_ids=row, use_cache=False)
    assert done.error is None
    result = moeprof.stream(
        quantized, prompts_of(ids), tmp_path / "t", device="cpu", dtype="float32", **extras
    )
    assert_same_rows(open_trace(tmp_path / "t"), open_trace(tmp_path / "hooks"))
    ours = (key for key in load_file(quantized / "model.safetensors") if _is_read(key))
    stored = load_file(quantized / "model.safetensors")
    assert result.bytes_read == sum(stored[key].nbytes for key in ours)


def _is_read(name: str) -> bool:
    return not re.search(r"lm_head|vision|projector|patch_merge", name)


def test_weights_are_kept_as_the_configuration_says(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    import torch

    from moeprof.capture.stream.run import open_model

    quantized, decoded = pair("M3's MXFP8")
    config = json.loads((quantized / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = "bfloat16"
    (tmp_path / "m").mkdir()
    for file in quantized.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    opened = open_model(tmp_path / "m", "cpu", "auto")
    layer = opened.places.layer(2)
    with held_layer(opened, layer):
        held = opened.skeleton.model.get_submodule(layer).self_attn.q_proj.weight
        wanted = load(decoded).get_submodule(layer).self_attn.q_proj.weight
        assert held.dtype == torch.bfloat16 and torch.equal(held, wanted.bfloat16())


def test_needs_are_those_of_the_decoded_weights_and_of_decoding(
    pair: Callable[[str], tuple[Path, Path]],
) -> None:
    from moeprof.capture.stream.run import open_model

    quantized, decoded = (open_model(folder, "cpu", "float32") for folder in pair("GPTQ"))
    layer = quantized.places.layer(1)
    assert quantized.skeleton.nbytes(layer) == decoded.skeleton.nbytes(layer)
    coded, plain = (opened.skeleton.part(layer) for opened in (quantized, decoded))
    assert coded.stored_bytes < plain.stored_bytes / 2
    words, zeros, scales, order = (
        4096,
        4096,
        4096,
        4096,
    )  # of one tensor, each in blocks of the disk
    assert plain.reading_bytes < 4 * (words + zeros + scales + order) <= coded.reading_bytes


@contextmanager
def held_layer(opened: Any, layer: str) -> Iterator[None]:
    """The layer with its weights."""
    skeleton = opened.skeleton
    frame, part = skeleton.part(opened.places.text, but=opened.places.layers), skeleton.part(layer)
    with Loader(skeleton, frame, [part], 1 << 20) as loader:
        loader.load()
        with loader.loaded():
            yield


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ in the format gemv"),
        ({"quant_method": "compressed-tensors", "transform_config": {"a": 1}}, "rotated"),
        ({"quant_method": "auto-round", "packing_format": "auto_round"}, "not packed as GPTQ"),
        ({"quant_method": "gptq", "bits": 3}, r"qweight is quantized \(I32\)"),
        ({"quant_method": "gptq", "bits": 8}, r"qweight is quantized \(I32\)"),
        ({"quant_method": "awq", "bits": 8}, r"qweight is quantized \(I32\)"),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_anything_is_written(
    pair: Callable[[str], tuple[Path, Path]],
    settings: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in pair("GPTQ")[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    (tmp_path / "p.txt").write_text("w5 w6\n")
    arguments = ["--prompts", str(tmp_path / "p.txt"), "-o", str(tmp_path / "t"), "--device", "cpu"]
    assert main(["capture", "stream", str(folder), *arguments]) == 2
    shown = capsys.readouterr().err
    assert re.search(said, shown) and "use the checkpoint in BF16" in shown
    assert {file.name for file in tmp_path.iterdir()} == {"m", "p.txt"}


def test_codes_without_their_scales_are_refused(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in pair("DeepSeek's FP8")[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kept = load_file(folder / "model.safetensors")
    lacking = next(name for name in kept if name.endswith("o_proj.weight_scale_inv"))
    del kept[lacking]
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"{re.escape(lacking[:-10])} is quantized \(F8_E4M3\)"):
        moeprof.stream(folder, prompts_of(sequences(3)), tmp_path / "t", device="cpu")


def test_exponents_may_have_a_type_of_their_own(
    pair: Callable[[str], tuple[Path, Path]], torch: Any
) -> None:
    from moeprof.capture.stream.checkpoint import open_checkpoint
    from moeprof.capture.stream.quantized import decode_checkpoint

    quantized, decoded = pair("M3's MXFP8")
    tensors = open_checkpoint(quantized)
    scales = [name for name in tensors if name.endswith("_scale_inv")]
    tensors |= {name: replace(tensors[name], dtype="F8_E8M0") for name in scales}
    settings = {"quant_method": "fp8", "weight_block_size": [1, 32]}
    found = decode_checkpoint(quantized, tensors, settings, torch.float32)
    wanted = load_file(decoded / "model.safetensors")
    assert scales and found.keys() == wanted.keys()
    assert all(torch.equal(found[name][...], wanted[name]) for name in wanted)


def test_a_grid_that_does_not_fit_is_no_block() -> None:
    from moeprof.capture.stream.decoding import block_sides

    assert block_sides((576, 7168), (5, 56), (128, 128)) == (128, 128)
    assert block_sides((576, 7168), (4, 56), None) == (144, 128)
    assert block_sides((576, 7168), (5, 56), None) is None
    assert block_sides((576, 7168), (576, 1), (128, 128)) == (1, 7168)
    assert block_sides((8, 64, 32), (8, 64, 1), (1, 32)) == (1, 32)
    assert block_sides((8, 64, 32), (4, 64, 1), (1, 32)) is None
    assert np.prod(block_sides((64, 32), (1, 1), None)) == 64 * 32
