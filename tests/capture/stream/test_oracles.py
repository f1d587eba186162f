"""Weights packed and unpacked by the code of those who publish the formats, not by ours.

compressed-tensors is called where it is installed. What AutoGPTQ and AutoAWQ make of random weights
is kept in packed_by_others.npz: AutoGPTQ, commit 9f7d370, nn_modules/qlinear/qlinear_cuda.py, its
`pack` and its `forward` of the identity, inputs in a random order; AutoAWQ 0.2.9,
utils/packing_utils.py, `dequantize_gemm`, scales in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from moeprof.capture.stream.checkpoint import SINGLE, open_checkpoint
from moeprof.capture.stream.quantized import decode_checkpoint

pytest.importorskip("torch")

GROUPS = {"strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int"}
# By name: its compressor, and how weights are quantized.
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "INT4": ("Packed", INT4 | GROUPS | {"symmetric": True}),
    "INT4 with zeros": ("Packed", INT4 | GROUPS | {"symmetric": False}),
    "INT8 by rows": ("Packed", INT4 | {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "INT8, not packed": ("Int", INT4 | {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "FP8, one scale": ("Float", FP8 | {"strategy": "tensor"}),
    "FP8 by rows": ("Float", FP8 | {"strategy": "channel"}),
    "FP8 by blocks": ("Float", FP8 | {"strategy": "block", "block_structure": [16, 32]}),
    "MXFP8": ("MXFP8", FP8 | GROUPS | {"scale_dtype": "uint8"}),
    "MXFP4": ("MXFP4", FP4 | GROUPS | {"scale_dtype": "uint8"}),
    "NVFP4": (
        "NVFP4",
        FP4 | {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "float8_e4m3fn"},
    ),
}
COMPRESSORS = {
    "Packed": "PackedQuantizationCompressor",
    "Int": "IntQuantizationCompressor",
    "Float": "FloatQuantizationCompressor",
    "MXFP8": "MXFP8QuantizationCompressor",
    "MXFP4": "MXFP4PackedCompressor",
    "NVFP4": "NVFP4PackedCompressor",
}


@pytest.mark.parametrize(("name", "bits"), [("gptq", 2), ("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_integers_that_others_packed(name: str, bits: int, tmp_path: Path) -> None:
    import torch

    with np.load(Path(__file__).with_name("packed_by_others.npz")) as kept:
        stored = {
            key.partition(".")[2]: torch.from_numpy(kept[key])
            for key in kept
            if key.startswith(f"{name}{bits}.")
        }
    wanted = stored.pop("weight")
    save_file({f"layer.{key}": value for key, value in stored.items()}, tmp_path / SINGLE)
    settings = {"quant_method": name, "bits": bits}
    found = decode_checkpoint(tmp_path, open_checkpoint(tmp_path), settings, torch.float32)
    assert found.keys() == {"layer.weight"} and torch.equal(found["layer.weight"][...], wanted)


@pytest.mark.parametrize("name", PACKED)
def test_what_compressed_tensors_packs_is_what_it_unpacks(name: str, tmp_path: Path) -> None:
    import torch

    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    kind, arguments = PACKED[name]
    stored, wanted = packed(kind, arguments)
    save_file({f"layer.{key}": value for key, value in stored.items()}, tmp_path / SINGLE)
    settings = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": arguments}},
        "weight_block_size": arguments.get("block_structure"),
    }
    tensors = open_checkpoint(tmp_path)
    found = decode_checkpoint(tmp_path, tensors, settings, wanted.dtype)["layer.weight"][...]
    if name == "NVFP4":  # it multiplies in BF16, of which each step may lose a bit
        assert torch.allclose(found.float(), wanted.float(), rtol=2**-7, atol=0)
    else:
        assert torch.equal(found, wanted)


def packed(kind: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What is stored of a weight, and the weight that it stands for."""
    import compressed_tensors.compressors as compressors
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 0.05
    how = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=how)
    whole = {"weight_global_scale": generate_gparam(weight.amin(), weight.amax())}
    whole = whole if kind == "NVFP4" else {}
    low, high = extremes(weight, arguments)
    scale, zero = calculate_qparams(low, high, how, *whole.values())
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero, **whole}
    compressor = getattr(compressors, COMPRESSORS[kind])
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


def extremes(weight: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Least and largest weights of what shares a scale."""
    if arguments["strategy"] == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if arguments["strategy"] == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    rows, columns = arguments.get("block_structure") or (1, arguments["group_size"])
    blocks = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    return blocks.amin((1, 3)), blocks.amax((1, 3))
