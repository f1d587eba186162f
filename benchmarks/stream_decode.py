"""How fast weights of quantized checkpoints are decoded to BF16, on one thread and on every core.

    python benchmarks/stream_decode.py

Tensors have the shape of one of MiniMax-M3's experts. The yardstick is a plain copy of the result's
bytes: what putting weights in their place takes when nothing is to be decoded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from moeprof.capture.stream.decoding import (
    decode_awq,
    decode_blocks,
    decode_gpt_oss,
    decode_gptq,
    decode_packed,
    e8m0,
)

ROWS, COLUMNS = 3072, 6144
TIMES = 8  # the best of which counts


def main() -> None:
    """Print a line a format."""
    torch.set_num_threads(1)
    source = torch.rand(ROWS, COLUMNS).bfloat16()
    copied = rates(lambda out: out.copy_(source), (ROWS, COLUMNS))
    print(f"{'copy':12}" + "".join(f"{rate / 1e9:8.2f}" for rate in copied), "G weights/s")
    for name, (decode, shape) in formats().items():
        found = rates(decode, shape)
        print(
            f"{name:12}" + "".join(f"{rate / 1e9:8.2f}" for rate in found),
            "G weights/s:" + "".join(f"{x / y:6.0%}" for x, y in zip(found, copied, strict=True)),
            "of a copy",
        )


def formats() -> dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]]:
    """By name, what decodes a tensor to a given one, and its shape."""
    plain = (ROWS, COLUMNS)
    fp8 = (numbers(ROWS, COLUMNS) & 0x7E).view(torch.float8_e4m3fn)
    fp4, blocks = numbers(ROWS, COLUMNS // 2), torch.rand(ROWS // 128, COLUMNS // 128)
    powers = numbers(ROWS, COLUMNS // 32) % 40 + 100
    by_input = (words(COLUMNS // 128, ROWS // 8), torch.rand(COLUMNS // 128, ROWS).half())
    fused = (fp4.reshape(1, ROWS, COLUMNS // 32, 16), powers.unsqueeze(0))
    packed = (words(ROWS, COLUMNS // 8), torch.rand(ROWS, COLUMNS // 128).bfloat16(), None, None)
    return {
        "FP8, blocks": (partial(run, decode_blocks, fp8, blocks, (128, 128)), plain),
        "MXFP8": (partial(run, decode_blocks, fp8, e8m0(powers), (1, 32)), plain),
        "MXFP4": (partial(run, decode_blocks, fp4, e8m0(powers), (1, 32), fp4=True), plain),
        "gpt-oss": (partial(run, decode_gpt_oss, *fused), (1, COLUMNS, ROWS)),
        "NVFP4": (
            partial(run, decode_blocks, fp4, torch.rand(ROWS, COLUMNS // 16), (1, 16), fp4=True),
            plain,
        ),
        "AWQ": (partial(run, decode_awq, words(COLUMNS, ROWS // 8), *by_input), plain),
        "GPTQ": (
            partial(
                run, decode_gptq, words(COLUMNS // 8, ROWS), *by_input, None, bits=4, zero_offset=1
            ),
            plain,
        ),
        "INT4, packed": (partial(run, decode_packed, *packed, bits=4), plain),
    }


def run(decode: Callable[..., None], *stored: Any, **how: Any) -> None:
    """The last of `stored` is where it goes."""
    *given, out = stored
    decode(*given, out=out, **how)


def numbers(*shape: int) -> Any:
    """Random bytes."""
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def words(*shape: int) -> Any:
    """Random words of 32 bits."""
    return torch.randint(-(1 << 31), (1 << 31) - 1, shape, dtype=torch.int32)


def rates(work: Callable[[Any], Any], shape: tuple[int, ...]) -> list[float]:
    """Weights a second of `work` to BF16 tensors of `shape`: on one thread, and on one a core."""
    found = []
    for threads in (1, os.cpu_count() or 1):
        outs = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(threads)]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            best = min(seconds(pool, work, outs) for _ in range(TIMES))
        found.append(threads * outs[0].numel() / best)
    return found


def seconds(pool: ThreadPoolExecutor, work: Callable[[Any], Any], outs: list[Any]) -> float:
    """What `work` takes on every one of `outs`."""
    started = time.perf_counter()
    list(pool.map(work, outs))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
