"""Matrix products of 16-bit weights on processors that have no instruction for them.

PyTorch then takes a slow general path: on a processor with AVX2 alone, a sixth of the speed of the
same product in float32. So weights are widened block by block, multiplied in float32, and the sums
rounded once: at least as close to the true product as what they stand in for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BLOCK_VALUES = 8 << 20  # of a weight that are wide at once
FEWEST_ROWS = 12  # below that, widening takes longer than it saves
FEWEST_VALUES = 1 << 20  # of a weight


def wide_products(weight_dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """While it is entered, large products with such weights are summed in float32, if that pays."""
    if device.type != "cpu" or not _slow(weight_dtype):
        return nullcontext()
    return _mode()


def _slow(dtype: torch.dtype) -> bool:
    import torch

    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in native and not native[dtype]()


def _mode() -> AbstractContextManager[Any]:
    import torch
    from torch.overrides import TorchFunctionMode

    grouped_mm = getattr(torch, "_grouped_mm", None)  # what torch.nn.functional.grouped_mm calls

    class WideProducts(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func is torch.nn.functional.linear and not kwargs and _pays(*args[:2]):
                return wide_linear(*args)
            if func is grouped_mm and _is_wanted(*args[:2]):
                named = {name: value for name, value in (kwargs or {}).items() if value is not None}
                if len(args) == 2 and list(named) == ["offs"]:
                    return wide_grouped(*args, **named)
            return func(*args, **(kwargs or {}))

    return WideProducts()


def _is_wanted(given: torch.Tensor, weight: torch.Tensor) -> bool:
    import torch

    return weight.dtype in (torch.bfloat16, torch.float16) and given.dtype == weight.dtype


def _pays(given: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        _is_wanted(given, weight)
        and weight.numel() >= FEWEST_VALUES
        and given.numel() >= FEWEST_ROWS * weight.shape[1]
    )


def wide_linear(
    given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`given` [..., n] times `weight` [m, n] transposed, plus `bias` [m]: as `given` is typed."""
    import torch

    outputs, inputs = weight.shape
    rows = given.reshape(-1, inputs).float()
    output = torch.empty(len(rows), outputs, dtype=given.dtype)
    step = max(1, BLOCK_VALUES // inputs)
    block = torch.empty(min(step, outputs), inputs)
    for start in range(0, outputs, step):
        part = slice(start, min(start + step, outputs))
        wide = block[: part.stop - start].copy_(weight[part])
        product = rows @ wide.T
        output[:, part] = product if bias is None else product + bias[part].float()
    return output.reshape(*given.shape[:-1], outputs)


def wide_grouped(given: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """`given` [rows, n] times `weight` [experts, n, m], rows of an expert together: [rows, m].

    `offs` [experts] says where the rows of each expert end, as `grouped_mm` of PyTorch has it.
    """
    output = given.new_zeros(len(given), weight.shape[2])
    start = 0
    for expert, end in enumerate(offs.tolist()):
        rows, turned = given[start:end], weight[expert].T
        if end > start:
            output[start:end] = (
                wide_linear(rows, turned) if _pays(rows, turned) else rows @ turned.T
            )
        start = end
    return output
