"""The header of a GGUF file: its metadata, and where its tensors stand.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
Read here, without a package, because headers are all that is wanted of them.
"""

from __future__ import annotations

import math
import struct
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_F32 = 0
_MOST_ENTRIES = 1 << 20  # keys or tensors: more is no GGUF

# ggml type: (values, bytes) of a block, as ggml_blck_size and ggml_type_size of llama.cpp 0c1e5709
# have it (ggml/src/ggml-common.h); the engine tests compare the two.
BLOCKS = {
    0: (1, 4),  # f32
    1: (1, 2),  # f16
    2: (32, 18),  # q4_0
    3: (32, 20),  # q4_1
    6: (32, 22),  # q5_0
    7: (32, 24),  # q5_1
    8: (32, 34),  # q8_0
    9: (32, 36),  # q8_1
    10: (256, 84),  # q2_k
    11: (256, 110),  # q3_k
    12: (256, 144),  # q4_k
    13: (256, 176),  # q5_k
    14: (256, 210),  # q6_k
    15: (256, 292),  # q8_k
    16: (256, 66),  # iq2_xxs
    17: (256, 74),  # iq2_xs
    18: (256, 98),  # iq3_xxs
    19: (256, 50),  # iq1_s
    20: (32, 18),  # iq4_nl
    21: (256, 110),  # iq3_s
    22: (256, 82),  # iq2_s
    23: (256, 136),  # iq4_xs
    24: (1, 1),  # i8
    25: (1, 2),  # i16
    26: (1, 4),  # i32
    27: (1, 8),  # i64
    28: (1, 8),  # f64
    29: (256, 56),  # iq1_m
    30: (1, 2),  # bf16
    34: (256, 54),  # tq1_0
    35: (256, 66),  # tq2_0
    39: (32, 17),  # mxfp4
    40: (64, 36),  # nvfp4
    41: (128, 18),  # q1_0
    42: (64, 18),  # q2_0
}


class GgufTensor(NamedTuple):
    """Where one tensor of a GGUF file stands."""

    name: str
    shape: tuple[int, ...]  # the fastest dimension first
    kind: int  # ggml type
    offset: int  # from the start of the data

    @property
    def nbytes(self) -> int | None:
        """Bytes in the file; None for a type that this version does not know."""
        if self.kind not in BLOCKS:
            return None
        values, size = BLOCKS[self.kind]
        row, *rows = self.shape or (1,)
        return math.ceil(row / values) * size * math.prod(rows)


class GgufHeader:
    """The metadata and tensor list of a GGUF file. ValueError or struct.error for what is none."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        magic, version, tensors, keys = self._take("<4sIQQ")
        if magic != b"GGUF":
            raise ValueError("it does not begin with the letters GGUF")
        if version not in (2, 3):
            raise ValueError(f"it is of version {version}, only 2 and 3 are known")
        if max(tensors, keys) > _MOST_ENTRIES:
            raise ValueError(f"{max(tensors, keys):,} entries")
        self.metadata = dict(self._entry() for _ in range(keys))
        self.tensors = [self._tensor() for _ in range(tensors)]
        alignment = int(self.metadata.get("general.alignment", 32))
        if alignment < 1:
            raise ValueError(f"alignment {alignment}")
        self.data_start = math.ceil(file.tell() / alignment) * alignment

    def floats(self, tensor: GgufTensor) -> NDArray[np.float32]:
        """The values of an F32 tensor, flat."""
        if tensor.kind != _F32:
            raise ValueError(f"{tensor.name} is not F32")
        self._file.seek(self.data_start + tensor.offset)
        data = self._file.read(4 * math.prod(tensor.shape))
        if len(data) < 4 * math.prod(tensor.shape):
            raise ValueError(f"the file ends within {tensor.name}")
        return np.frombuffer(data, "<f4")

    def _take(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._file.read(struct.calcsize(layout)))

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if length > 1 << 24:
            raise ValueError(f"a string of {length:,} bytes")
        return self._file.read(length).decode("utf-8", errors="replace")

    def _entry(self) -> tuple[str, Any]:
        name = self._string()
        (kind,) = self._take("<I")
        return name, self._value(kind, 0)

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < 4:
            inner, count = self._take("<IQ")
            if count > 1 << 24:
                raise ValueError(f"an array of {count:,} values")
            if inner in _NUMBERS:
                return list(self._take(f"<{count}{_NUMBERS[inner]}"))
            return [self._value(inner, depth + 1) for _ in range(count)]
        return self._take("<" + _NUMBERS[kind])[0]

    def _tensor(self) -> GgufTensor:
        name = self._string()
        (dimensions,) = self._take("<I")
        if dimensions > 4:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = self._take(f"<{dimensions}Q")
        kind, offset = self._take("<IQ")
        return GgufTensor(name, shape, kind, offset)
