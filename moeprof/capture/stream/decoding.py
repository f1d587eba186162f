"""Quantized weights turned back into numbers, on the CPU.

transformers 5.23 decodes only what its kernels or other packages decode for it: block-scaled FP8
whose shape the blocks divide (DeepSeek's does not: 576 rows in blocks of 128) and the MXFP4 of
gpt-oss. So all formats are decoded here, by their definitions, a few rows at a time. Formats:
E2M1 and E8M0, OCP Microscaling Formats 1.0, sections 5.3.3 and 5.4.1; the packing of integers,
vllm-project/vllm, model_executor/layers/quantization/{auto_awq,auto_gptq}.py and
compressed-tensors' pack_to_int32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the columns 0..7 stand
CHUNK = 1 << 16  # weights that are decoded at once: few, so that they stay cached
WORKING_BYTES = 32  # what one of them takes meanwhile, the result not counted


def e8m0(codes: torch.Tensor) -> torch.Tensor:
    """Powers of two, in float32, whose exponents are bytes with a bias of 127; 255 is NaN."""
    import torch

    powers = [math.ldexp(1.0, code - 127) for code in range(255)]
    return torch.tensor([*powers, math.nan], dtype=torch.float32)[codes.int()]


def e2m1_pairs(codes: torch.Tensor) -> torch.Tensor:
    """[..., 2n] float32 of the FP4 numbers in [..., n] bytes, the lower four bits first."""
    import torch

    signed = torch.tensor([*E2M1, *(-value for value in E2M1)])
    byte = torch.arange(256)
    pairs = torch.stack([signed[byte & 15], signed[byte >> 4]], dim=1)
    return pairs[codes.view(torch.uint8).int()].flatten(-2)


def block_sides(
    shape: tuple[int, ...], grid: tuple[int, ...], wanted: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Rows and columns of a block, if a `grid` of scales covers `shape`; the last may be cut.

    `wanted` is what the configuration says; a grid that it does not fit must divide the shape.
    """
    if len(shape) < 2 or shape[:-2] != grid[:-2] or len(shape) != len(grid):
        return None
    sides = []
    for size, blocks, side in zip(shape[-2:], grid[-2:], wanted or (0, 0), strict=True):
        if side and -(-size // side) == blocks:
            sides.append(side)
        elif blocks and size % blocks == 0:
            sides.append(size // blocks)
        else:
            return None
    return sides[0], sides[1]


def decode_blocks(
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int],
    dtype: torch.dtype,
    *,
    fp4: bool = False,
) -> torch.Tensor:
    """[..., rows, columns] of `dtype`: each of `codes` times the float32 scale of its block.

    With `fp4` a byte holds two columns. The product is taken in float32.
    """
    import torch

    columns = codes.shape[-1] * (2 if fp4 else 1)
    decoded = torch.empty(*codes.shape[:-1], columns, dtype=dtype)
    if codes.dim() > 2:
        for number, part in enumerate(codes):
            decoded[number] = decode_blocks(part, scales[number], block, dtype, fp4=fp4)
        return decoded
    for some in _slices(len(codes), columns):
        values = e2m1_pairs(codes[some]) if fp4 else codes[some].float()
        at = torch.arange(some.start, some.stop) // block[0]
        decoded[some] = values.mul_(scales[at].repeat_interleave(block[1], dim=1)[:, :columns])
    return decoded


def decode_gpt_oss(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[experts, columns, rows] of MXFP4 [experts, rows, columns / 32, 16] and a scale a block.

    transposed, as transformers' GptOssExperts has its weights (integrations/mxfp4.py).
    """
    import torch

    experts, rows, groups, _ = blocks.shape
    decoded = torch.empty(experts, groups * 32, rows, dtype=dtype)
    for expert in range(experts):
        codes, powers = blocks[expert].flatten(1), e8m0(scales[expert])
        decoded[expert] = decode_blocks(codes, powers, (1, 32), dtype, fp4=True).T
    return decoded


def unpack(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The unsigned integers of `bits` in 32-bit words, the lowest bits first, along `dim`."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    spread = (words.movedim(dim, -1).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return spread.flatten(-2).movedim(-1, dim)


def decode_gptq(
    words: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    bits: int,
    zero_offset: int,
) -> torch.Tensor:
    """[out, in] of GPTQ: words [in * bits / 32, out], zeros and scales a group of inputs.

    `groups` is the group of each input (g_idx), in order where None. The first format of GPTQ
    stores zeros less one: `zero_offset` is what they lack.
    """
    import torch

    inputs, outputs = len(words) * 32 // bits, words.shape[1]
    group = _group(inputs, len(scales), groups)
    decoded = torch.empty(outputs, inputs, dtype=dtype)
    for some in _slices(outputs, inputs):
        centre = unpack(zeros[:, _words(some, bits)], bits, 1) + zero_offset
        centred = unpack(words[:, some], bits, 0) - centre[group]
        decoded[some] = (centred.float() * scales[:, some].float()[group]).T
    return decoded


def decode_awq(
    words: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """[out, in] of AWQ's GEMM format: 4 bits, words [in, out / 8] of interleaved columns."""

    import torch

    def ordered(packed: torch.Tensor) -> torch.Tensor:
        return unpack(packed, 4, 1).unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)

    inputs, outputs = len(words), words.shape[1] * 8
    group = _group(inputs, len(scales), None)
    decoded = torch.empty(outputs, inputs, dtype=dtype)
    for some in _slices(outputs, inputs):
        packed = _words(some, 4)
        centred = ordered(words[:, packed]) - ordered(zeros[:, packed])[group]
        decoded[some] = (centred.float() * scales[:, some].float()[group]).T
    return decoded


def decode_packed(
    words: torch.Tensor,
    scales: torch.Tensor,
    shape: torch.Tensor,
    zeros: torch.Tensor | None,
    groups: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    bits: int,
) -> torch.Tensor:
    """[out, in] of compressed-tensors' pack-quantized: words [out, in * bits / 32] with an offset.

    Zeros, where there are any, are packed along the outputs with the same offset.
    """
    import torch

    rows, columns = (int(size) for size in shape)
    group = _group(columns, scales.shape[1], groups)
    decoded = torch.empty(rows, columns, dtype=dtype)
    centre: int | torch.Tensor = 1 << (bits - 1)
    for some in _slices(rows, columns):
        levels = unpack(words[some], bits, 1)[:, :columns]
        if zeros is not None:
            centre = unpack(zeros[_words(some, bits)], bits, 0)[: len(levels)][:, group]
        decoded[some] = (levels - centre).float() * scales[some].float()[:, group]
    return decoded


def _slices(size: int, width: int) -> Iterator[slice]:
    """Parts of `size` rows of `width` weights; all but the last begin and end at whole words."""
    step = max(32, CHUNK // max(1, width) // 32 * 32)
    for start in range(0, size, step):
        yield slice(start, min(size, start + step))


def _words(some: slice, bits: int) -> slice:
    """Where in 32-bit words the numbers of `some` are."""
    return slice(some.start * bits // 32, -(-some.stop * bits // 32))


def _group(size: int, count: int, given: torch.Tensor | None) -> torch.Tensor:
    import torch

    if given is not None and bool((given >= 0).all()):  # -1 where the order was not kept
        return given.long()
    return torch.arange(size) // -(-size // count)
