"""One function over many layers, a thread a core: their inner loops let go of the interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

BRING_BLAS = ("numpy", "scipy.linalg", "torch")  # each its own

Item = TypeVar("Item")
Made = TypeVar("Made")


def map_threads(function: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """`function` of each of `items`, in their order; the first error is raised.

    Meanwhile BLAS has one thread for each of ours: its own would wait in busy loops for a core.
    """
    blas = _blas_of(*(name for name in BRING_BLAS if name in sys.modules))
    with blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


@cache
def _blas_of(*loaded: str) -> Any:
    """What sets the threads of BLAS, of all that is loaded: looking for it takes 2 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
