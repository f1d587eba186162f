"""llama.cpp's evaluation callback, in machine code: no Python runs while the model does.

llama.cpp asks about every node of every graph whether its result is wanted: thousands of times a
token, of which some fifty matter. Names are compared here, and results that are wanted are
appended to a log in memory, each as ggml's struct and its elements, which Python reads later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite.binding import add_symbol
from numba import carray, cfunc, njit, types
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import F32, I32, MAX_NAME, STRUCT_BYTES, Tensor
from moeprof.capture.llamacpp.tap import HEAD

# The fields of a tensor that matter here.
TENSOR = np.dtype(
    {
        "names": ["type", "ne", "nb", "name"],
        "formats": ["i4", ("i8", 4), ("i8", 4), ("u1", MAX_NAME)],
        "offsets": [getattr(Tensor, field).offset for field in ("type", "ne", "nb", "name")],
        "itemsize": STRUCT_BYTES,
    }
)
_SIGNATURE = types.boolean(types.voidptr, types.boolean, types.voidptr)
_MINUS, _ZERO, _NINE = ord("-"), ord("0"), ord("9")
_READ = "moeprof_ggml_backend_tensor_get"
_tensor_get = types.ExternalFunction(
    _READ, types.void(types.voidptr, types.voidptr, types.uint64, types.uint64)
)


@njit(cache=True, nogil=True)
def is_wanted(name: NDArray[np.uint8], stems: NDArray[np.uint8]) -> bool:
    """Whether `name`, [64] bytes that end at a 0, is one of `stems`, "-" and a number.

    `stems` is [n, 64], each ending at a 0; empty ones are none. What llama.cpp derives of a tensor
    has more behind the number ("ffn_moe_topk-3 (reshaped)").
    """
    for row in range(stems.shape[0]):
        at = 0
        while stems[row, at] != 0 and stems[row, at] == name[at]:
            at += 1
        if at == 0 or stems[row, at] != 0 or name[at] != _MINUS:
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


def load_callback(tensor_get: int) -> Any:
    """A `ggml_backend_sched_eval_callback` that logs what the head of its log asks for.

    `tensor_get` is the address of `ggml_backend_tensor_get`; `cb_eval_user_data` is the log. What
    comes back has an `address`; keep it alive. Compiling takes seconds, so Numba keeps the code on
    disk: no address and no name is part of it, and the layouts, being closed over, are in its key.
    """
    add_symbol(_READ, tensor_get)
    head_type, tensor_type, struct_bytes = HEAD, TENSOR, STRUCT_BYTES

    @cfunc(_SIGNATURE, cache=True)
    def callback(tensor: Any, ask: bool, log: Any) -> bool:
        head = carray(log, 1, head_type)[0]
        seen = carray(tensor, 1, tensor_type)[0]
        if ask:
            return bool(is_wanted(seen.name, head.stems))
        if not head.open:
            return True
        span = span_bytes(seen.ne, seen.nb) if seen.type in (F32, I32) else 0
        elements = seen.ne[0] * seen.ne[1] * seen.ne[2] * seen.ne[3] if span else 0
        data = head.used + struct_bytes
        end = data + (4 * elements + 7) // 8 * 8
        if end + span > head.size:  # the span lies behind, until it is gathered
            head.lost += 1
            return True
        memory = carray(log, head.size, np.uint8)
        memory[head.used : data] = carray(tensor, struct_bytes, np.uint8)
        if span:
            whole = memory[end : end + span]
            _tensor_get(tensor, whole.ctypes, 0, span)
            gather(whole.view(np.int32), seen.ne, seen.nb, memory[data:end].view(np.int32))
        head.used = end
        return True

    return callback
