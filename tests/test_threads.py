"""Results in order, the first error raised, and BLAS on one thread for as long as ours run."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from moeprof.threads import map_threads


def blas_threads(_: object = None) -> list[int]:
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_results_are_in_order() -> None:
    assert map_threads(lambda n: n * n, range(100)) == [n * n for n in range(100)]


def test_the_first_error_is_raised_and_blas_gets_its_threads_back() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas_threads()
    assert map_threads(blas_threads, [0]) == [[1] * len(before)]
    with pytest.raises(ZeroDivisionError):
        map_threads(lambda n: 1 / n, [1, 0])
    assert blas_threads() == before
