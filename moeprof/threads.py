"""One function over many layers, a thread a core: their inner loops let go of the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def map_threads(function: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """`function` of each of `items`, in their order; the first error is raised.

    Meanwhile BLAS has one thread for each of ours: its own would wait in busy loops for a core.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))
