"""llama.cpp's evaluation callback, in machine code: no Python runs while the model does.

llama.cpp asks about every node of every graph whether its result is wanted: thousands of times a
token, of which some fifty matter. Names are compared here, and results that are wanted are
appended to a log in memory, each as ggml's struct and its elements, which Python reads later.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import F32, I32, MAX_NAME, Tensor

# The log begins with these numbers of 64 bits: bytes in all, bytes used, whether results are
# wanted now, and how many found no room.
SIZE, USED, OPEN, LOST = range(4)
HEAD_BYTES = 32
STRUCT_BYTES = ctypes.sizeof(Tensor)

_SIGNATURE = types.boolean(types.voidptr, types.boolean, types.voidptr)
_NE, _NB, _NAME = Tensor.ne.offset // 8, Tensor.nb.offset // 8, Tensor.name.offset
_MINUS, _ZERO, _NINE = ord("-"), ord("0"), ord("9")


@njit(cache=True, nogil=True)
def is_wanted(name: NDArray[np.uint8], stems: NDArray[np.uint8]) -> bool:
    """Whether `name`, [64] bytes that end at a 0, is one of `stems`, "-" and a number.

    `stems` is [n, 64], each ending at a 0. What llama.cpp derives of a tensor has more behind the
    number ("ffn_moe_topk-3 (reshaped)").
    """
    for row in range(stems.shape[0]):
        at = 0
        while stems[row, at] != 0 and stems[row, at] == name[at]:
            at += 1
        if stems[row, at] != 0 or name[at] != _MINUS:
            continue
        at += 1
        digits = 0
        while at < name.shape[0] and _ZERO <= name[at] <= _NINE:
            at += 1
            digits += 1
        if digits and at < name.shape[0] and name[at] == 0:
            return True
    return False


@njit(cache=True, nogil=True)
def span_bytes(ne: NDArray[np.int64], nb: NDArray[np.int64]) -> int:
    """Bytes from the first element of a tensor of 4-byte elements to the end of its last."""
    span = 4
    for dimension in range(4):
        if ne[dimension] < 1:
            return 0
        span += (ne[dimension] - 1) * nb[dimension]
    return span


@njit(cache=True, nogil=True)
def gather(
    span: NDArray[np.int32], ne: NDArray[np.int64], nb: NDArray[np.int64], out: NDArray[np.int32]
) -> None:
    """The elements of a tensor whose memory is `span`, by its strides, side by side into `out`.

    A top-k is a view of rows that are sorted whole: what follows a row's first k ids are the
    experts that were not chosen.
    """
    at = 0
    for fourth in range(ne[3]):
        for third in range(ne[2]):
            for row in range(ne[1]):
                start = fourth * nb[3] + third * nb[2] + row * nb[1]
                for column in range(ne[0]):
                    out[at] = span[(start + column * nb[0]) // 4]
                    at += 1


def compile_callback(stems: tuple[str, ...], tensor_get: int) -> Any:
    """A `ggml_backend_sched_eval_callback` that logs results named `stems`-N.

    `tensor_get` is the address of `ggml_backend_tensor_get`; `cb_eval_user_data` is the log. What
    comes back has an `address`; keep it alive.
    """
    known = np.zeros((len(stems), MAX_NAME), np.uint8)
    for row, stem in enumerate(stems):
        known[row, : len(stem)] = np.frombuffer(stem.encode(), np.uint8)
    size = ctypes.c_size_t
    get = ctypes.CFUNCTYPE(None, ctypes.c_void_p, size, size, size)(tensor_get)

    @cfunc(_SIGNATURE)
    def callback(tensor: Any, ask: bool, log: Any) -> bool:
        struct = carray(tensor, STRUCT_BYTES, np.uint8)
        if ask:
            return bool(is_wanted(struct[_NAME:], known))
        head = carray(log, HEAD_BYTES // 8, np.int64)
        if head[OPEN] == 0:
            return True
        words = carray(tensor, STRUCT_BYTES // 8, np.int64)
        ne, nb = words[_NE : _NE + 4], words[_NB : _NB + 4]
        kind = carray(tensor, 1, np.int32)[0]
        readable = kind in (F32, I32)
        span = span_bytes(ne, nb) if readable else 0
        elements = ne[0] * ne[1] * ne[2] * ne[3] if span else 0
        start = head[USED]
        data = start + STRUCT_BYTES
        end = data + (4 * elements + 7) // 8 * 8
        if end + span > head[SIZE]:  # the span lies behind, until it is gathered
            head[LOST] += 1
            return True
        memory = carray(log, head[SIZE], np.uint8)
        memory[start:data] = struct
        if span:
            get(tensor, memory.ctypes.data + end, 0, span)
            whole = memory[end : end + span].view(np.int32)
            gather(whole, ne, nb, memory[data : data + 4 * elements].view(np.int32))
        head[USED] = end
        return True

    return callback
