"""What a replay allocates, beside the ids of one layer, which is what it must read.

    python benchmarks/cache_memory.py [--tokens 1000000]

MiniMax-M3 (57 x 128, top-4), one token a step, from a folder on disk. Peaks are tracemalloc's, so
memory-mapped ids do not count; the arrays that say where steps begin are named apart, since every
replay needs them once, and layers are replayed two at a time on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moeprof.cache import lru_curve, replay_cache
from moeprof.cache.events import find_steps
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, open_trace, synthesize_rows
from moeprof.trace.writer import TraceWriter


def peak_bytes(run: Callable[[], object]) -> int:
    """Of what `run` allocates, the second time."""
    run()
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    """Print a line a replay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    tokens = parser.parse_args().tokens
    model = MoEModel.preset("minimax-m3")
    rows, requests = synthesize_rows(model, tokens, prefill=0.0, skew=1.0)
    rows = TokenRows(**{**vars(rows), "step": np.arange(tokens)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m3.moetrace"
        with TraceWriter(path, model) as writer:
            writer.write(rows)
            for request in requests:
                writer.put_request(request)
        trace = open_trace(path)
        ids = trace.experts(trace.layers[0]).nbytes
        print(
            f"ids of one layer: {ids / 1e6:.1f} MB, of all: {ids * len(trace.layers) / 1e6:.0f} MB"
        )
        runs: dict[str, Callable[[], object]] = {
            "steps alone": lambda: find_steps(trace),
            "LRU curve, layer": lambda: lru_curve(trace),
            "LRU curve, global": lambda: lru_curve(trace, scope="global"),
            "lru, layer": lambda: replay_cache(trace, slots=32),
            "belady, layer": lambda: replay_cache(trace, policy="belady", slots=32),
        }
        for name, run in runs.items():
            peak = peak_bytes(run)
            print(f"{name:<20}{peak / 1e6:8.1f} MB{peak / ids:8.1f} x the ids of one layer")


if __name__ == "__main__":
    main()
