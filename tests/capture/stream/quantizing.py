"""Checkpoints quantized as published ones are: what is stored, and the numbers it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
GROUP = 16  # inputs that share a scale, in the formats that leave it open
BLOCK = 24  # of FP8: no multiple divides the tiny models' sizes, as 128 does not DeepSeek's 576

Stored = dict[str, Any]
Quantize = Callable[[str, Any], tuple[Stored, Any]]  # the stored tensors, the decoded one


def fp8(name: str, weight: Any) -> tuple[Stored, Any]:
    """Blocks of rows and columns, as DeepSeek-V3 and MiniMax-M2."""
    import torch

    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    codes, scales = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    decoded = torch.empty_like(weight)
    for i in range(rows):
        for j in range(columns):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[at].abs().max() / 448
            codes[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
            decoded[at] = codes[at].float() * scales[i, j]
    return {name: codes, f"{name}_scale_inv": scales}, decoded


def fp8_rows(name: str, weight: Any) -> tuple[Stored, Any]:
    """A scale a row: compressed-tensors' float-quantized."""
    import torch

    scales = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    codes = (weight / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scales}, codes.float() * scales.float()


def mxfp8(name: str, weight: Any) -> tuple[Stored, Any]:
    """A power of two for 32 columns, in a byte, as MiniMax-M3-MXFP8."""
    import torch

    columns = weight.shape[1]
    spread = torch.zeros(len(weight), -(-columns // 32) * 32)
    spread[:, :columns] = weight
    blocks = spread.unflatten(1, (-1, 32))
    exponents = torch.floor(torch.log2(blocks.abs().amax(2))) - 8
    powers = torch.exp2(exponents).unsqueeze(2)
    codes = (blocks / powers).clamp(-448, 448).to(torch.float8_e4m3fn)
    decoded = (codes.float() * powers).flatten(1)[:, :columns].contiguous()
    stored = codes.flatten(1)[:, :columns].contiguous()
    return {name: stored, f"{name}_scale_inv": (exponents + 127).to(torch.uint8)}, decoded


def mxfp4(name: str, weight: Any) -> tuple[Stored, Any]:
    """The fused experts of gpt-oss: 32 columns in 16 bytes, beside a power of two."""
    import torch

    blocks = weight.transpose(1, 2).unflatten(2, (-1, 32))
    exponents = torch.floor(torch.log2(blocks.abs().amax(3))) - 2
    codes, values = _e2m1(blocks / torch.exp2(exponents).unsqueeze(3))
    stored = {f"{name}_blocks": codes, f"{name}_scales": (exponents + 127).to(torch.uint8)}
    decoded = values * torch.exp2(exponents).unsqueeze(3)
    return stored, decoded.flatten(2).transpose(1, 2).contiguous()


def mxfp4_bytes(name: str, weight: Any) -> tuple[Stored, Any]:
    """The same of one matrix, as Quark writes it."""
    stored, decoded = mxfp4(name, weight.T.unsqueeze(0))
    codes, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
    return {name: codes[0].flatten(1), f"{name}_scale": scales[0]}, decoded[0].T.contiguous()


def nvfp4(name: str, weight: Any) -> tuple[Stored, Any]:
    """16 columns share an FP8 scale, all of them a number, as Model Optimizer writes it."""
    codes, small, values, scale = _nvfp4(weight)
    return {name: codes, f"{name}_scale": small, f"{name}_scale_2": scale}, _spread(
        values, small.float() * scale
    )


def nvfp4_packed(name: str, weight: Any) -> tuple[Stored, Any]:
    """The same as compressed-tensors writes it, with the inverse of that number."""
    import torch

    codes, small, values, scale = _nvfp4(weight)
    inverse = torch.tensor([1 / float(scale)])
    stored = {f"{name}_packed": codes, f"{name}_scale": small, f"{name}_global_scale": inverse}
    return stored, _spread(values, small.float() / inverse)


def awq(name: str, weight: Any) -> tuple[Stored, Any]:
    """4 bits, eight interleaved outputs a word."""
    levels, zeros, scales, decoded = _integers(weight)
    base = name.removesuffix(".weight")
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the column that each four bits of a word hold
    words = [
        _pack(part.T.unflatten(1, (-1, 8))[:, :, order].flatten(1)) for part in (levels, zeros)
    ]
    return {
        f"{base}.qweight": words[0],
        f"{base}.qzeros": words[1],
        f"{base}.scales": scales.T.contiguous(),
    }, decoded


def gptq(name: str, weight: Any) -> tuple[Stored, Any]:
    """4 bits, eight inputs a word, zeros less one, and inputs in an order of their own."""
    import torch

    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(3))
    levels, zeros, scales, ordered = _integers(weight[:, order])
    place = torch.argsort(order)
    base = name.removesuffix(".weight")
    return {
        f"{base}.qweight": _pack(levels[:, place]).T.contiguous(),
        f"{base}.qzeros": _pack((zeros - 1).T),
        f"{base}.scales": scales.T.contiguous(),
        f"{base}.g_idx": (place // GROUP).int(),
    }, ordered[:, place].contiguous()


def packed(name: str, weight: Any) -> tuple[Stored, Any]:
    """compressed-tensors' pack-quantized, with zeros."""
    import torch

    levels, zeros, scales, decoded = _integers(weight)
    return {
        f"{name}_packed": _pack(levels),
        f"{name}_scale": scales,
        f"{name}_shape": torch.tensor(weight.shape),
        f"{name}_zero_point": _pack(zeros.T).T.contiguous(),
    }, decoded


def quantize(
    plain: Path, to: Path, format_: Quantize, settings: Mapping[str, Any], wanted: Any
) -> tuple[Path, Path]:
    """Two checkpoints from `plain`: quantized where `wanted(name)`, and of the decoded numbers."""
    from safetensors.torch import load_file, save_file

    stored: Stored = {}
    decoded: Stored = {}
    for file in sorted(plain.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            if wanted(name):
                written, decoded[name] = format_(name, weight.float())
                stored |= written
            else:
                stored[name] = decoded[name] = weight
    for folder, tensors in ((to / "quantized", stored), (to / "decoded", decoded)):
        folder.mkdir(parents=True)
        for file in plain.glob("*.json"):
            if "index" not in file.name:
                (folder / file.name).write_bytes(file.read_bytes())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = dict(settings)
    (to / "quantized" / "config.json").write_text(json.dumps(config))
    return to / "quantized", to / "decoded"


def _e2m1(numbers: Any) -> tuple[Any, Any]:
    """The nearest FP4 numbers, two a byte, the first in the lower bits, and as numbers."""
    import torch

    levels = torch.tensor(E2M1)
    nearest = (numbers.abs().unsqueeze(-1) - levels).abs().argmin(-1)
    negative = numbers < 0
    codes = (nearest + 8 * negative).to(torch.uint8)
    values = torch.where(negative, -levels[nearest], levels[nearest])
    return codes[..., 0::2] + 16 * codes[..., 1::2], values


def _nvfp4(weight: Any) -> tuple[Any, Any, Any, Any]:
    import torch

    blocks = weight.unflatten(1, (-1, 16))
    scale = weight.abs().max() / (6 * 448)
    small = (blocks.abs().amax(2) / (6 * scale)).to(torch.float8_e4m3fn)
    codes, values = _e2m1(blocks / (small.float() * scale).clamp(min=1e-9).unsqueeze(2))
    return codes.flatten(1), small, values, scale


def _spread(values: Any, scales: Any) -> Any:
    return (values * scales.unsqueeze(2)).flatten(1)


def _integers(weight: Any) -> tuple[Any, Any, Any, Any]:
    """Levels [out, in] of 4 bits, zeros (never 0) and scales [out, groups], and the numbers."""
    import torch

    blocks = weight.unflatten(1, (-1, GROUP))
    low, high = blocks.amin(2), blocks.amax(2)
    scales = ((high - low) / 14).half()
    zeros = torch.round(-low / scales.float()).clamp(1, 15).int()
    levels = torch.round(blocks / scales.float().unsqueeze(2)) + zeros.unsqueeze(2)
    levels = levels.clamp(0, 15).int()
    decoded = (levels - zeros.unsqueeze(2)).float() * scales.float().unsqueeze(2)
    return levels.flatten(1), zeros, scales, decoded.flatten(1)


def _pack(levels: Any) -> Any:
    """Eight numbers of 4 bits a word along the last dimension, the first one lowest."""
    import torch

    short = -levels.shape[-1] % 8
    whole = torch.nn.functional.pad(levels, (0, short)).long().unflatten(-1, (-1, 8))
    words = sum(whole[..., place] << 4 * place for place in range(8))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()
