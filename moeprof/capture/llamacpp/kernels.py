"""Answering llama.cpp's question, about every node of every graph, whether its result is wanted.

A graph of 60 layers has thousands of nodes, of which some fifty are; in Python the answers alone
would take milliseconds a token. So the callback is machine code: it compares names, and calls
Python for results that are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import MAX_NAME, Tensor

_SIGNATURE = types.boolean(types.voidptr, types.boolean, types.voidptr)
_NAME = Tensor.name.offset
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


def compile_callback(stems: tuple[str, ...], read: Callable[[int, bool, int], bool]) -> Any:
    """A `ggml_backend_sched_eval_callback` that passes results named `stems`-N on to `read`.

    `read` is a C function of the same type. What comes back has an `address`; keep both alive.
    """
    known = np.zeros((len(stems), MAX_NAME), np.uint8)
    for row, stem in enumerate(stems):
        known[row, : len(stem)] = np.frombuffer(stem.encode(), np.uint8)

    @cfunc(_SIGNATURE)
    def callback(tensor: int, ask: bool, state: int) -> bool:
        if not ask:
            return read(tensor, ask, state)
        name = carray(tensor, _NAME + MAX_NAME, np.uint8)[_NAME:]
        return bool(is_wanted(name, known))

    return callback
