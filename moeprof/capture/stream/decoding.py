"""Quantized weights turned back into numbers, on the CPU.

transformers 5.23 decodes only what its kernels or other packages decode for it: block-scaled FP8
whose shape the blocks divide (DeepSeek's does not: 576 rows in blocks of 128) and the MXFP4 of
gpt-oss. So all formats are decoded here, by their definitions. They come to the same: a number for
each code, less the centre of its group, times the group's scale, in float32. Formats:
E2M1 and E8M0, OCP Microscaling Formats 1.0, sections 5.3.3 and 5.4.1; the packing of integers,
vllm-project/vllm, model_executor/layers/quantization/{auto_awq,auto_gptq}.py and
compressed-tensors' pack_to_int32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 18  # weights that are decoded at once: few, so that they stay cached
CHUNK_BYTES = 12  # that one of them takes meanwhile: in float32, with a centre and a scale
LAID_ANEW_BYTES = 2  # that every weight takes in some formats before it is in its place
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the columns 0..7 stand


def e8m0(codes: torch.Tensor) -> torch.Tensor:
    """Powers of two, in float32, whose exponents are bytes with a bias of 127; 255 is NaN."""
    import torch

    powers = [math.ldexp(1.0, code - 127) for code in range(255)]
    return torch.tensor([*powers, math.nan], dtype=torch.float32)[codes.int()]


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
    out: torch.Tensor,
    *,
    fp4: bool = False,
) -> None:
    """`out` [..., rows, columns]: each of `codes` times the float32 scale of its block.

    With `fp4` a byte holds two columns.
    """
    import torch

    if codes.dim() > 2:
        for number, part in enumerate(codes):
            decode_blocks(part, scales[number], block, out[number], fp4=fp4)
        return
    rows = scales[torch.arange(len(codes)) // block[0]]
    values = _pairs(torch.tensor([*E2M1, *(-x for x in E2M1)])) if fp4 else _bytes_of(codes.dtype)
    _decode(
        codes.view(torch.uint8), values, torch.zeros(1, 1).expand(rows.shape), rows, block[1], out
    )


def decode_gpt_oss(blocks: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """`out` [experts, columns, rows] of MXFP4 [experts, rows, columns / 32, 16], a scale a block.

    transposed, as transformers' GptOssExperts has its weights (integrations/mxfp4.py).
    """
    import torch

    for expert, codes in enumerate(blocks):
        decoded = torch.empty_like(out[expert].T, memory_format=torch.contiguous_format)
        decode_blocks(codes.flatten(1), e8m0(scales[expert]), (1, 32), decoded, fp4=True)
        out[expert].copy_(decoded.T)


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
    out: torch.Tensor,
    *,
    bits: int,
    zero_offset: int,
) -> None:
    """`out` [out, in] of GPTQ: words [in * bits / 32, out], zeros and scales a group of inputs.

    `groups` is the group of each input (g_idx), in order where None. The first format of GPTQ
    stores zeros less one: `zero_offset` is what they lack.
    """
    codes = words.T.contiguous()
    centres = (unpack(zeros, bits, 1) + zero_offset).T.float()
    _decode_levels(codes, bits, centres, scales.T.float(), groups, out)


def decode_awq(
    words: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, out: torch.Tensor
) -> None:
    """`out` [out, in] of AWQ's GEMM format: 4 bits, words [in, out / 8] of interleaved columns."""
    import torch

    packed = words.T.contiguous().view(torch.uint8).unflatten(1, (-1, 4))  # [out / 8, in, 4]
    codes = torch.empty(out.shape, dtype=torch.uint8)
    for row, place in enumerate(AWQ_ORDER):
        codes[row::8] = packed[:, :, place // 2] >> place % 2 * 4 & 15
    centres = unpack(zeros, 4, 1).unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)
    _decode_levels(codes, 8, centres.T.float(), scales.T.float(), None, out)


def decode_packed(
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    groups: torch.Tensor | None,
    out: torch.Tensor,
    *,
    bits: int,
) -> None:
    """`out` [out, in] of compressed-tensors' pack-quantized: words [out, in * bits / 32].

    Levels, and zeros, where there are any, are stored with an offset; zeros are packed along the
    outputs.
    """
    import torch

    centres = torch.full((1, 1), float(1 << (bits - 1))).expand(scales.shape)
    if zeros is not None:
        centres = unpack(zeros, bits, 0)[: len(out)].float()
    _decode_levels(words, bits, centres, scales.float(), groups, out)


def _decode_levels(
    words: torch.Tensor,
    bits: int,
    centres: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Unsigned integers of `bits`, packed along the columns, in `groups` or in order."""
    import torch

    columns = out.shape[1]
    if groups is not None and bool((groups >= 0).all()):  # -1 where the order was not kept
        order, side = groups.long(), 1
    else:
        order, side = None, -(-columns // scales.shape[1])
    if bits == 2 or (bits == 4 and side % 2):
        words, bits = unpack(words, bits, 1).to(torch.uint8), 8
    values = _pairs(torch.arange(16.0)) if bits == 4 else _bytes_of(torch.uint8)
    _decode(words.view(torch.uint8), values, centres, scales, side, out, order)


def _decode(
    codes: torch.Tensor,
    values: torch.Tensor,
    centres: torch.Tensor,
    scales: torch.Tensor,
    side: int,
    out: torch.Tensor,
    order: torch.Tensor | None = None,
) -> None:
    """Fill `out` [rows, columns] from `codes` [rows, bytes], whose `values` are [256, 1 or 2].

    `side` columns share a centre and a scale, [rows, groups]: in `order`, those of each column.
    """
    import torch

    from moeprof.capture.stream.kernels import dequantize

    rows, columns = out.shape
    width = codes.shape[1] * values.shape[1]
    wide = torch.empty(max(1, CHUNK // width), width)
    for some in torch.arange(rows).split(len(wide)):
        part = slice(int(some[0]), int(some[-1]) + 1)
        own = [x[part] if order is None else x[part][:, order] for x in (centres, scales)]
        given = (codes[part], values, *own, side // values.shape[1], wide[: len(some)])
        dequantize(*(x.numpy() if isinstance(x, torch.Tensor) else x for x in given))
        out[part].copy_(wide[: len(some), :columns])


def _bytes_of(dtype: torch.dtype) -> torch.Tensor:
    """[256, 1]: what each byte stands for in a type of 8 bits."""
    import torch

    return torch.arange(256).to(torch.uint8).view(dtype).float().unsqueeze(1)


def _pairs(values: torch.Tensor) -> torch.Tensor:
    """[256, 2]: what each byte stands for that holds two codes, the first in its lower bits."""
    import torch

    byte = torch.arange(256)
    return torch.stack([values[byte & 15], values[byte >> 4]], dim=1)
