"""Bytes/s between this machine's CPUs and its memory, by number of threads.

McCalpin's STREAM triad, and reading alone, which is what computing experts on the CPU does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moeprof.hardware.figure import Figure
from moeprof.hardware.probe.machine import available_bytes, cache_bytes, cpu_count
from moeprof.hardware.probe.measurement import NotMeasuredError, Spread, measure, measured, rate

_LEAST_BYTES = 64 << 20  # of an array, where the size of the caches is not known
_SHARE = 8  # of the free memory, all three arrays take one part in this many


def probe_memory(seconds: float, array_bytes: int | None = None) -> dict[str, Figure]:
    """Triad and reading; `array_bytes` of each of three arrays, four times the cache if None."""
    size = (array_bytes or default_array_bytes()) // 8
    arrays = [np.empty(size) for _ in range(3)]
    with ThreadPoolExecutor(cpu_count()) as pool:
        triads, reads = _sweep(pool, arrays, seconds)
    about = f"float64 arrays of {size * 8 / 1e6:,.0f} MB, by threads of one process"
    if size * 8 < 4 * cache_bytes():
        about += f", below 4 x the last cache of {cache_bytes() / 1e6:,.0f} MB"
    triad, read = "memory_bandwidth_effective_bytes_per_s", "memory_read_bytes_per_s"
    return {
        triad: _best(triad, triads, f"STREAM triad, 24 bytes counted an element, {about}"),
        read: _best(read, reads, f"dot product, 16 bytes counted an element, {about}"),
    }


def default_array_bytes() -> int:
    """Four times the last cache, as STREAM asks, within an eighth of the free memory in all."""
    wanted = max(4 * cache_bytes(), _LEAST_BYTES)
    allowed = available_bytes() // _SHARE // 3
    if allowed < 1 << 20:
        raise NotMeasuredError("too little free memory")
    return min(wanted, allowed)


def thread_counts(cpus: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
    powers = [1 << n for n in range(cpus.bit_length()) if 1 << n < cpus]
    return [*powers, cpus]


def _sweep(
    pool: ThreadPoolExecutor, arrays: list[NDArray[np.float64]], seconds: float
) -> tuple[dict[int, Spread], dict[int, Spread]]:
    """Triad and dot product by number of threads."""
    from moeprof.hardware.probe.kernels import dot, triad

    a, b, c = arrays

    def fill(start: int, stop: int) -> None:  # by the threads: pages go to their NUMA node
        for array in arrays:
            array[start:stop] = 1.0

    _on_chunks(pool, cpu_count(), a.size, fill)
    triads, reads = {}, {}
    for threads in thread_counts(cpu_count()):
        once = partial(_on_chunks, pool, threads, a.size)
        triads[threads] = measure(
            rate(24 * a.size, partial(once, partial(triad, a, b, c))), seconds
        )
        reads[threads] = measure(rate(16 * a.size, partial(once, partial(dot, b, c))), seconds)
    return triads, reads


def _on_chunks(
    pool: ThreadPoolExecutor, threads: int, size: int, work: Callable[[int, int], object]
) -> None:
    edges = [size * n // threads for n in range(threads + 1)]
    list(pool.map(work, edges[:-1], edges[1:]))


def _best(name: str, spreads: dict[int, Spread], method: str) -> Figure:
    threads = max(spreads, key=lambda n: spreads[n].median)
    by_threads = tuple((n, spread.median) for n, spread in spreads.items())
    return measured(name, spreads[threads], f"{method}, best at {threads}", by_threads)
