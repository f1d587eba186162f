"""Weight formats: how many bytes a tensor takes, scales included.

`element_bits` is the width of one stored weight, `block` the (rows, columns) that share scales and
`block_bytes` what a block carries beside its weights: scales, and zero points or minima where the
format has them. `column_bytes` is what a format keeps for each input column of a tensor. Scales of
a whole tensor (one FP32 number in NVFP4 and per-tensor FP8) are left out: 12 bytes an expert, in no
published size visible.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from moeprof.errors import InputError

_MX = "OCP Microscaling Formats (MX) Specification v1.0: blocks of 32, one E8M0 scale byte"
_AWQ = "arXiv 2306.00978; groups of 128: FP16 scales, INT4 zero points packed eight to an INT32"
_GPTQ = "arXiv 2210.17323; groups of 128 as in AWQ, and an INT32 group index for each input column"
_INT4 = "https://huggingface.co/moonshotai/Kimi-K2.5 config.json: groups of 32, one BF16 scale"
_MLX = "https://github.com/ml-explore/mlx mlx.core.quantize: groups of 64, a 16-bit scale and bias"
_GGML = "https://github.com/ggml-org/llama.cpp ggml/src/ggml-common.h, the block structs"


@dataclass(frozen=True)
class WeightFormat:
    """One way to store weights. `family` says which tools write it: plain, scaled, mlx or gguf."""

    name: str
    family: str
    element_bits: int
    block: tuple[int, int]
    block_bytes: int
    source: str
    column_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes with its share of the scales, in whole blocks of endless columns."""
        return self.element_bits + 8 * self.block_bytes / math.prod(self.block)

    def tensor_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one tensor of `shape`; a block cut off by the edge has its own scale."""
        *outer, rows, columns = (1, *shape)
        blocks = math.ceil(rows / self.block[0]) * math.ceil(columns / self.block[1])
        elements = math.ceil(math.prod(shape) * self.element_bits / 8)
        beside = blocks * self.block_bytes + columns * self.column_bytes
        return elements + math.prod(outer) * beside


def _table(*formats: WeightFormat) -> dict[str, WeightFormat]:
    return {weight_format.name: weight_format for weight_format in formats}


FORMATS = _table(
    WeightFormat("bf16", "plain", 16, (1, 1), 0, "bfloat16: the upper half of IEEE 754 binary32"),
    WeightFormat("fp16", "plain", 16, (1, 1), 0, "IEEE 754 binary16"),
    WeightFormat("fp32", "plain", 32, (1, 1), 0, "IEEE 754 binary32"),
    WeightFormat("fp8", "scaled", 8, (1, 1), 0, "OCP 8-bit floating point (OFP8), one scale"),
    WeightFormat("fp8_block", "scaled", 8, (128, 128), 4, "DeepSeek-V3, arXiv 2412.19437, 3.3.2"),
    WeightFormat("mxfp8", "scaled", 8, (1, 32), 1, _MX),
    WeightFormat("nvfp4", "scaled", 4, (1, 16), 1, "NVIDIA NVFP4: blocks of 16, one E4M3 scale"),
    WeightFormat("mxfp4", "scaled", 4, (1, 32), 1, _MX),
    WeightFormat("int4_awq", "scaled", 4, (8, 128), 20, _AWQ),
    WeightFormat("int4_gptq", "scaled", 4, (8, 128), 20, _GPTQ, column_bytes=4),
    WeightFormat("int4", "scaled", 4, (1, 32), 2, _INT4),
    WeightFormat("mlx8", "mlx", 8, (1, 64), 4, _MLX),
    WeightFormat("mlx6", "mlx", 6, (1, 64), 4, _MLX),
    WeightFormat("mlx4", "mlx", 4, (1, 64), 4, _MLX),
    WeightFormat("mlx3", "mlx", 3, (1, 64), 4, _MLX),
    WeightFormat("q8_0", "gguf", 8, (1, 32), 2, _GGML),
    WeightFormat("q6_k", "gguf", 6, (1, 256), 18, _GGML),
    WeightFormat("q5_k", "gguf", 5, (1, 256), 16, _GGML),
    WeightFormat("q4_k", "gguf", 4, (1, 256), 16, _GGML),
    WeightFormat("q4_0", "gguf", 4, (1, 32), 2, _GGML),
    WeightFormat("iq4_xs", "gguf", 4, (1, 256), 8, _GGML),
    WeightFormat("iq4_nl", "gguf", 4, (1, 32), 2, _GGML),
    WeightFormat("q3_k", "gguf", 3, (1, 256), 14, _GGML),
    WeightFormat("iq3_s", "gguf", 3, (1, 256), 14, _GGML),
    WeightFormat("iq3_xxs", "gguf", 3, (1, 256), 2, _GGML),
    WeightFormat("q2_k", "gguf", 2, (1, 256), 20, _GGML),
    WeightFormat("iq2_s", "gguf", 2, (1, 256), 18, _GGML),
    WeightFormat("iq2_xs", "gguf", 2, (1, 256), 10, _GGML),
    WeightFormat("iq2_xxs", "gguf", 2, (1, 256), 2, _GGML),
    WeightFormat("iq1_m", "gguf", 1, (1, 256), 24, _GGML),
    WeightFormat("iq1_s", "gguf", 1, (1, 256), 18, _GGML),
)

# Names that engines use for the same thing: vLLM's --dtype and --kv-cache-dtype, torch, GGUF.
FORMAT_ALIASES = {
    "auto": "bf16",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "f16": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "f32": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "awq": "int4_awq",
    "gptq": "int4_gptq",
}


def weight_format(name: str) -> WeightFormat:
    """The format called `name`, in any case and with engines' own names.

    Raises InputError, naming the nearest format, where there is none.
    """
    key = name.lower()
    key = FORMAT_ALIASES.get(key, key)
    if key in FORMATS:
        return FORMATS[key]
    near = difflib.get_close_matches(key, FORMATS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(FORMATS)}"
    raise InputError(f"no weight format '{name}'; {hint}")
