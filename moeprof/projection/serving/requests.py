"""Requests: when they arrive, how long they are, and how much of their prompt is in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError

Lengths = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Request:
    """`input_len` prompt tokens, of which `cached_len` are in the prefix cache, to `output_len`.

    Every request computes at least its last prompt token, so `cached_len` counts to
    `input_len` - 1 at most. Raises InputError where a length is out of range.
    """

    input_len: int  # tokens
    output_len: int  # tokens
    arrival_s: float = 0.0
    cached_len: int = 0  # tokens

    def __post_init__(self) -> None:
        if self.input_len < 1 or self.output_len < 1:
            raise InputError(
                f"a request of {self.input_len} + {self.output_len} tokens: both must be at least 1"
            )
        if not 0 <= self.cached_len < self.input_len:
            raise InputError(
                f"a request has {self.cached_len} cached tokens of {self.input_len}: "
                "it must be at least 0 and less than all"
            )
        if not 0 <= self.arrival_s < float("inf"):
            raise InputError(f"a request arrives at {self.arrival_s} s, it must be at least 0")


def uniform_requests(
    count: int,
    input_len: int,
    output_len: int,
    *,
    length_spread: float = 0.0,
    hit_ratio: float = 0.0,
    seed: int = 0,
) -> list[Request]:
    """`count` requests whose lengths are uniform in [1 - `length_spread`, 1] x the stated ones.

    Input and output are drawn apart. vLLM's `benchmark_serving.py --random-range-ratio 0.8`, as
    InferenceX runs it, is a `length_spread` of 0.2. `hit_ratio` of every prompt is in the cache.
    """
    check_share("length_spread", length_spread)
    check_share("hit_ratio", hit_ratio)
    if count < 1 or input_len < 1 or output_len < 1:
        raise InputError(
            f"{count} requests of {input_len} + {output_len} tokens: each must be at least 1"
        )
    random = np.random.default_rng(seed)
    least = [max(1, int(n * (1 - length_spread))) for n in (input_len, output_len)]
    prompts = random.integers(least[0], input_len, count, endpoint=True)
    outputs = random.integers(least[1], output_len, count, endpoint=True)
    return [
        Request(int(i), int(o), cached_len=min(int(i * hit_ratio), int(i) - 1))
        for i, o in zip(prompts, outputs, strict=True)
    ]


def poisson_arrivals(count: int, rate: float, *, seed: int = 0) -> NDArray[np.float64]:
    """Arrival times in seconds, [request], of a Poisson process of `rate` requests a second."""
    if not 0 < rate < float("inf"):
        raise InputError(f"a rate of {rate} requests/s: it must be above 0")
    return np.random.default_rng([seed, 1]).exponential(1 / rate, count).cumsum()


def check_share(name: str, value: float) -> None:
    """Raises InputError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise InputError(f"{name} is {value}, it must be at least 0 and less than 1")
