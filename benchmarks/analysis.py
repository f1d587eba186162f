"""How fast is each analysis, and how much memory does it take, beside one pass over the ids?

    python benchmarks/analysis.py [TRACE] [--only load locality ...] [--tokens 1000000]

Without TRACE, synthetic routing of MiniMax-M3's shape: 57 layers x 128 experts, top-4. Each
analysis runs in a process of its own, twice: the first run compiles what Numba has not kept. The
bound is `numpy.bincount` over the ids of every layer: nothing that reads them all is faster. The
target is 5 s on two cores for a million tokens; CPU seconds over two stand beside the wall clock,
for a machine that does other work too. Memory is what the process held at its peak above what it
held with the trace open, and the ids of one layer beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import moeprof
from moeprof.trace import Trace

TARGET_S = 5.0
BOUND = "bincount"


def bincount(trace: Trace) -> None:
    """The bound: count every id of every layer once, one thread."""
    for layer in trace.layers:
        for part in trace.batches(layer):
            np.bincount(part.experts.ravel(), minlength=trace.experts_per_layer)


# An analysis a line: its name, and what it does with a trace.
ANALYSES: dict[str, Callable[[Trace], object]] = {
    BOUND: bincount,
    "load": moeprof.analyze_load,
    "locality": moeprof.analyze_locality,
    "affinity": moeprof.analyze_affinity,
    "specialization": moeprof.analyze_specialization,
    "pruning": moeprof.analyze_pruning,
    "compare": lambda trace: moeprof.compare_traces(trace, trace),
}


def measured(name: str, path: str) -> dict[str, float]:
    """Seconds and bytes of one analysis, in this process; the faster of two runs."""
    trace = moeprof.open_trace(path)
    _ = trace.phase, trace.request, trace.position, trace.step, trace.label_code
    before = resource.getrusage(resource.RUSAGE_SELF)
    best: dict[str, float] = {}
    for _ in range(2):
        cpu, wall = time.process_time(), time.perf_counter()
        ANALYSES[name](trace)
        run = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        best = min(best or run, run, key=lambda found: found["cpu_s"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {**best, "peak_bytes": (after.ru_maxrss - before.ru_maxrss) * 1024.0}


def in_its_own_process(name: str, path: str) -> dict[str, float]:
    """`measured` in a fresh interpreter, so that peaks do not mix."""
    command = [sys.executable, __file__, path, "--only", name, "--here"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(trace: Trace, names: list[str]) -> None:
    """One line an analysis."""
    layer = trace.tokens * trace.top_k * (1 if trace.experts_per_layer <= 256 else 2)
    print(
        f"{trace.tokens:,} tokens x {len(trace.layers)} layers x {trace.top_k} of "
        f"{trace.experts_per_layer}; the ids of a layer are {layer / 1e6:.1f} MB"
    )
    print("analysis         wall s  cpu s  cpu s / 2  x bincount  M rows/s  peak MB  in 5 s")
    bound = in_its_own_process(BOUND, str(trace.path))
    for name in [BOUND, *names]:
        got = bound if name == BOUND else in_its_own_process(name, str(trace.path))
        half = got["cpu_s"] / 2
        print(
            f"{name:<15} {got['wall_s']:7.2f} {got['cpu_s']:6.2f} {half:10.2f} "
            f"{got['cpu_s'] / bound['cpu_s']:11.1f} {trace.tokens / half / 1e6:9.2f} "
            f"{got['peak_bytes'] / 1e6:8.0f}  {'yes' if half < TARGET_S else 'NO'}",
            flush=True,
        )


def main() -> None:
    """Measure one analysis here, or all, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--only", nargs="+", choices=[*ANALYSES])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    names = given.only or [name for name in ANALYSES if name != BOUND]
    if given.here:
        print(json.dumps(measured(names[0], given.trace)))
        return
    with TemporaryDirectory() as folder:
        path = given.trace or str(Path(folder) / "m3.moetrace")
        if not given.trace:
            command = [sys.executable, "-m", "moeprof", "synth", "minimax-m3"]
            command += ["--tokens", str(given.tokens), "--output", path, "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        show(moeprof.open_trace(path), names)


if __name__ == "__main__":
    main()
