"""How fast is a request-level simulation, and what does it cost to take steps one by one?

    python benchmarks/serving.py

1,000 requests of 8,192 + 1,024 tokens (uniform in 0.8 to 1 times that) at several concurrencies
under each engine's rules, on a made-up step-time function of MiniMax-M3's size. Beside it: the same
simulation with every step taken by itself, which must give the same times; and a bound, the time in
which Python calls the step-time function once a step and does nothing else.
"""

from __future__ import annotations

import time
from math import expm1

import numpy as np

from moeprof.projection.serving import (
    Request,
    ServingOutcome,
    StepGrid,
    simulate_serving,
    uniform_requests,
)
from moeprof.projection.step.batch import Batch

CASES = [
    ("vllm", 256, None),
    ("vllm", 256, 1_000_000),
    ("sglang", 256, None),
    ("sglang", 256, 1_000_000),
    ("trtllm", 256, None),
    ("vllm", 16, None),
    ("vllm", 1, None),
]


def step_seconds(batch: Batch) -> float:
    """Weights read by distinct experts, work by tokens, KV by context: milliseconds."""
    experts = -expm1(-batch.tokens * 4 / 128)
    attention = 3e-10 * (batch.decode * batch.context + batch.prefill * batch.prefill_context)
    return 2e-3 + 9e-3 * experts + 1.2e-5 * batch.tokens + attention


def timed(
    requests: list[Request], engine: str, concurrency: int, kv: int | None, run: int | None
) -> tuple[float, ServingOutcome]:
    """(seconds it took, the outcome)."""
    started = time.perf_counter()
    outcome = simulate_serving(
        step_seconds,
        requests,
        engine=engine,
        concurrency=concurrency,
        kv_tokens=kv,
        longest_run=run,
    )
    return time.perf_counter() - started, outcome


def bound(steps: int) -> float:
    """Seconds to call the function once for each of `steps` steps."""
    batch = Batch(200, 9000.0, 0, 0.0)
    started = time.perf_counter()
    for _ in range(min(steps, 20_000)):
        step_seconds(batch)
    return (time.perf_counter() - started) * steps / min(steps, 20_000)


def interpolation_error() -> float:
    """The largest relative error of the grid on 2,000 random batches."""
    random, grid, worst = np.random.default_rng(0), StepGrid(step_seconds), 0.0
    for _ in range(2000):
        decode, prefill = (int(n) for n in np.exp(random.uniform(0, 9, 2)))
        context, before = np.exp(random.uniform(0, 12, 2))
        batch = Batch(decode, float(context), prefill, float(before))
        worst = max(worst, abs(grid.seconds(batch) / step_seconds(batch) - 1))
    return worst


def main() -> None:
    """Time, compare, print."""
    requests = uniform_requests(1000, 8192, 1024, length_spread=0.2)
    print(f"grid against the function itself: at most {interpolation_error():.2%} off")
    for engine, concurrency, kv in CASES:
        took, outcome = timed(requests, engine, concurrency, kv, None)
        line = f"{engine:7} C={concurrency:<4} KV {kv or 'free':>9}: {outcome.steps:>9,} steps "
        line += f"in {took:5.2f} s, {took / bound(outcome.steps):5.2f} x the bound"
        if outcome.steps < 100_000:
            slow, again = timed(requests, engine, concurrency, kv, 1)
            if not np.allclose(again.finish_s, outcome.finish_s, rtol=1e-9):
                raise SystemExit(f"{engine}: times differ from those of single steps")
            line += f"; single steps {slow / took:.1f} x as long"
        print(line)


if __name__ == "__main__":
    main()
