"""How the formats of quantized checkpoints are told apart, and what each tensor is made of.

Names and shapes as they are published: FP8 and MXFP8, huggingface/transformers,
integrations/finegrained_fp8.py; gpt-oss, integrations/mxfp4.py; the others, vllm-project/vllm,
model_executor/layers/quantization/{modelopt,auto_awq,auto_gptq}.py and compressed_tensors/. That
MiniMax-M3-MXFP8 keeps its exponents in U8: jundot/omlx, pull request 2159.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream import decoding
from moeprof.capture.stream.checkpoint import StoredTensor

if TYPE_CHECKING:
    import torch

FP8 = ("F8_E4M3", "F8_E5M2")
FLOATS = ("BF16", "F16", "F32")
MX_BLOCK = 32  # columns that share a scale in the MX formats
NVFP4_BLOCK = 16

Decode = Callable[..., None]  # of what is stored, to `out`
Shape = tuple[int, ...]
Found = tuple[str, list[str], Decode, Shape]


@dataclass(frozen=True)
class Formats:
    """What each name of a quantized checkpoint stands for."""

    tensors: Mapping[str, StoredTensor]
    settings: Mapping[str, Any]

    def read(self, name: str) -> Iterator[Found]:
        """At most once: the model's tensor, the names it is made of, how, and its shape."""
        base, _, leaf = name.rpartition(".")
        if name.endswith("_blocks"):
            yield from self._gpt_oss(name.removesuffix("_blocks"))
        elif leaf == "qweight":
            yield from self._words(base)
        elif leaf == "weight_packed" and self.tensors[name].dtype == "I32":
            yield from self._packed(base)
        elif leaf == "weight_packed":
            yield from self._fp4(f"{base}.weight", name)
        elif self.tensors[name].dtype in ("U8", "I8"):
            yield from self._fp4(name, name)
            yield from self._scaled(name)
        elif self.tensors[name].dtype in FP8:
            yield from self._scaled(name)

    def _gpt_oss(self, name: str) -> Iterator[Found]:
        keys = [f"{name}_blocks", f"{name}_scales"]
        if self._dtypes(*keys) != ["U8", "U8"]:
            return
        blocks, scales = (self.tensors[key].shape for key in keys)
        if len(blocks) == 4 and blocks == (*scales, MX_BLOCK // 2):
            experts, rows, groups = scales
            yield name, keys, decoding.decode_gpt_oss, (experts, groups * MX_BLOCK, rows)

    def _scaled(self, name: str) -> Iterator[Found]:
        """FP8, with scales that are numbers or exponents; 8-bit integers with numbers."""
        scale = self._scale_of(name)
        stored = self.tensors[name]
        if scale is None or stored.dtype == "U8":
            return
        if self.tensors[scale].dtype not in (("U8", *FLOATS) if stored.dtype in FP8 else FLOATS):
            return
        grid = _grid(stored.shape, self.tensors[scale].shape)
        size = self.settings.get("weight_block_size")
        block = decoding.block_sides(stored.shape, grid, tuple(size) if size else None)
        if block:
            decode = partial(_scaled, grid=grid, block=block)
            yield name, [name, scale], decode, stored.shape

    def _fp4(self, target: str, name: str) -> Iterator[Found]:
        """MXFP4 and NVFP4, two columns a byte."""
        scale, second = self._scale_of(target), None
        if scale is None or len(self.tensors[name].shape) < 2:
            return
        *rows, bytes_ = self.tensors[name].shape
        side = MX_BLOCK if self.tensors[scale].dtype == "U8" else NVFP4_BLOCK
        if self.tensors[scale].shape != (*rows, 2 * bytes_ // side):
            return
        if side == NVFP4_BLOCK:
            second = self._first(f"{target}_scale_2", f"{target}_global_scale")
            if self.tensors[scale].dtype not in FP8 or second is None:
                return
            if self.tensors[second].shape not in ((), (1,)):
                return
        divides = second is not None and second.endswith("_global_scale")
        decode = partial(_fp4, side=side, divides=divides)
        keys = [name, scale, *([second] if second else [])]
        yield target, keys, decode, (*rows, 2 * bytes_)

    def _words(self, base: str) -> Iterator[Found]:
        """AWQ and GPTQ."""
        keys = [f"{base}.qweight", f"{base}.qzeros", f"{base}.scales"]
        method, bits = self.settings.get("quant_method"), self.settings.get("bits", 4)
        if self._dtypes(*keys[:2]) != ["I32", "I32"] or keys[2] not in self.tensors:
            return
        (words, _), (_, zeros), (_, outputs) = (self.tensors[key].shape for key in keys)
        if zeros * 32 != outputs * bits:  # some tensors have other bits than most
            return
        if method == "awq" and bits == 4:
            yield f"{base}.weight", keys, decoding.decode_awq, (outputs, words)
        elif method in ("gptq", "auto-round") and bits in (2, 4, 8):
            groups = self._first(f"{base}.g_idx")
            offset = 0 if self.settings.get("checkpoint_format") == "gptq_v2" else 1
            decode = partial(_gptq, bits=bits, zero_offset=offset)
            keys += [groups] if groups else []
            yield f"{base}.weight", keys, decode, (outputs, words * 32 // bits)

    def _packed(self, base: str) -> Iterator[Found]:
        """Integers of compressed-tensors."""
        keys = [f"{base}.weight_{part}" for part in ("packed", "scale", "shape")]
        sizes = {
            (group.get("weights") or {}).get("num_bits")
            for group in (self.settings.get("config_groups") or {}).values()
        }
        if not all(key in self.tensors for key in keys) or len(sizes) != 1 or not sizes <= {4, 8}:
            return
        rest = {
            role: key
            for role, part in (("zeros", "zero_point"), ("groups", "g_idx"))
            if (key := f"{base}.weight_{part}") in self.tensors
        }
        bits, (rows, words) = int(sizes.pop() or 0), self.tensors[keys[0]].shape
        decode = partial(_packed, tuple(rest), bits=bits)
        yield f"{base}.weight", [*keys, *rest.values()], decode, (rows, words * 32 // bits)

    def _scale_of(self, name: str) -> str | None:
        return self._first(f"{name}_scale_inv", f"{name}_scale", f"{name.rpartition('.')[0]}.scale")

    def _first(self, *names: str) -> str | None:
        return next((name for name in names if name in self.tensors), None)

    def _dtypes(self, *names: str) -> list[str]:
        return [self.tensors[name].dtype for name in names if name in self.tensors]


def _grid(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """Scales as rows and columns of blocks: there may be one in all, or one a row."""
    if scales in ((), (1,)):
        return (*(1 for _ in shape),)
    return (*scales, 1) if scales == shape[:-1] else scales


def _numbers(scales: torch.Tensor) -> torch.Tensor:
    import torch

    return decoding.e8m0(scales) if scales.dtype == torch.uint8 else scales.float()


def _scaled(
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    grid: tuple[int, ...],
    block: tuple[int, int],
    out: torch.Tensor,
) -> None:
    """Of a stack, or of one of its matrices."""
    grid = (len(codes), *grid[1:]) if len(grid) > 2 else grid
    decoding.decode_blocks(codes, _numbers(scales).reshape(grid), block, out)


def _fp4(
    codes: torch.Tensor,
    scales: torch.Tensor,
    second: torch.Tensor | None = None,
    *,
    side: int,
    divides: bool,
    out: torch.Tensor,
) -> None:
    numbers = _numbers(scales)
    if second is not None:  # Model Optimizer multiplies by it, compressed-tensors divides
        numbers = numbers / second.float() if divides else numbers * second.float()
    decoding.decode_blocks(codes, numbers, (1, side), out, fp4=True)


def _gptq(
    words: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
    **options: Any,
) -> None:
    decoding.decode_gptq(words, zeros, scales, groups, out, **options)


def _packed(
    roles: tuple[str, ...],
    words: torch.Tensor,
    scales: torch.Tensor,
    shape: torch.Tensor,
    *rest: torch.Tensor,
    out: torch.Tensor,
    bits: int,
) -> None:
    """`shape` says again what `out` has."""
    given = {"zeros": None, "groups": None, **dict(zip(roles, rest, strict=True))}
    decoding.decode_packed(words, scales, given["zeros"], given["groups"], out, bits=bits)
