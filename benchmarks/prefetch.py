"""Replay with prefetch: how fast, and is the previous token right as often as others counted?

    python benchmarks/prefetch.py            # speed on the shape of MiniMax-M3
    python benchmarks/prefetch.py FOLDER     # and precision of previous-token on recorded runs

FOLDER is `docs/bench-data/2026-07-15-route-trace` of github.com/Helldez/BigMoeOnEdge (Apache-2.0),
whose docs/expert-prediction.md says of those runs that naming the previous token's experts is right
about 38 % of the time on Qwen and 18 % on gpt-oss.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moeprof.cache import replay_cache
from moeprof.cache.prefetch import PREDICTORS, replay_prefetch
from moeprof.model import MoEModel
from moeprof.trace import Phase, TokenRows, Trace, open_trace, synthesize_rows

TOKENS = 20_000  # x 57 x 4 = 4.56 million accesses
SLOTS = 32
PUBLISHED = {"qwen": 38, "gptoss": 18}


def million_a_second(accesses: int, run: Callable[[], object], repeats: int = 2) -> float:
    """The best of `repeats`, after one run that compiles."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return accesses / best / 1e6


def made_up() -> Trace:
    """One token a step, a request for every 500."""
    model = MoEModel.preset("minimax-m3")
    rows, requests = synthesize_rows(model, TOKENS, prefill=0.0, skew=1.0)
    steps = np.arange(TOKENS)
    request = (steps // 500).astype(np.int32)
    rows = TokenRows(**{**vars(rows), "step": steps, "request": request})
    return Trace.in_memory(model, rows, requests)


def speed() -> None:
    """Accesses a second of each predictor, naming and replaying, beside the plain replay."""
    trace = made_up()
    accesses = TOKENS * len(trace.layers) * trace.top_k
    plain = million_a_second(accesses, lambda: replay_cache(trace, slots=SLOTS))
    print(f"{'':<28}{'million accesses/s':>19}{'of plain':>10}")
    print(f"{'LRU without prefetch':<28}{plain:19.2f}{1:10.2f}")
    for name in PREDICTORS:
        if name == "next-gate":  # not recorded here
            continue
        # Each call also replays the rows without prefetch: two replays of all accesses.
        found = million_a_second(
            2 * accesses,
            lambda name=name: replay_prefetch(
                trace, predictor=name, slots=SLOTS, link_experts_per_layer=2.0
            ),
        )
        print(f"{name:<28}{found:19.2f}{found / plain:10.2f}")
        sys.stdout.flush()


def agreement(folder: Path) -> None:
    """Precision of previous-token over a run's decode steps, beside what its authors say."""
    print(f"\n{'run':<28}{'published, %':>19}{'here, %':>10}")
    for file in sorted(folder.glob("*.route.csv")):
        name = file.name.removesuffix(".route.csv")
        trace = open_trace(file)
        row = replay_prefetch(trace, fraction=0.25, fit=0.0, phase=Phase.DECODE).rows[-1]
        print(f"{name:<28}{PUBLISHED.get(name, '-'):>19}{100 * (row.precision or 0):10.1f}")


if __name__ == "__main__":
    speed()
    if len(sys.argv) == 2:
        agreement(Path(sys.argv[1]))
