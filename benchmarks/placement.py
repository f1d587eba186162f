"""Placement beside DeepSeek's EPLB and the port of its algorithm: balance, duplicates, seconds.

    python benchmarks/placement.py [--eplb FILE]      # eplb.py of github.com/deepseek-ai/EPLB
    python benchmarks/placement.py --traces T [T ...] # out of sample, on recordings

Without --eplb an installed `eplb` is taken, and where there is none its columns stay empty; it
needs torch, and runs on one thread. Inputs are 57 layers of 128 experts with log-normal loads of
1,000,000 assignments, seed 20261122. Imbalance is the mean over layers of the busiest GPU's load
over the mean, replicas sharing equally. Seconds are the best of three calls, compiled before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from moeprof.placement import Placement, Topology, lower_bound, place_trace, solve_placement
from moeprof.trace import open_trace

# spread, GPUs, redundant slots, the imbalance that best is asked for
CASES = [
    (0.5, 8, 8, None),
    (0.5, 16, 0, None),
    (0.5, 64, 64, 1.006),
    (1.0, 8, 8, 1.001),
    (1.0, 16, 16, 1.001),
    (1.0, 64, 64, 1.010),
    (1.0, 64, 128, 1.005),
]
MACHINES = [(4, 0), (8, 0), (8, 8), (8, 16), (16, 16)]
SHIPPED = Path(__file__).parents[1] / "traces" / "tiny-m3.moetrace"


def lognormal_load(spread: float) -> NDArray[np.int64]:
    """[57, 128] assignments."""
    share = np.random.default_rng(20261122).lognormal(0, spread, (57, 128))
    return np.rint(1e6 * share / share.sum(axis=1, keepdims=True)).astype(np.int64)


def best_of_three(solve: Callable[[], Placement]) -> tuple[Placement, float]:
    """What was solved, and seconds."""
    placement = solve()  # compiles
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        placement = solve()
        seconds.append(time.perf_counter() - start)
    return placement, min(seconds)


def load_eplb(path: str | None) -> ModuleType | None:
    """DeepSeek's module, from a file or as installed."""
    spec = util.spec_from_file_location("eplb", path) if path else util.find_spec("eplb")
    if spec is None or spec.loader is None:
        return None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(module: ModuleType, load: NDArray[np.int64], topology: Topology) -> Placement:
    """DeepSeek's map, on one thread of torch."""
    import torch

    torch.set_num_threads(1)
    table, _, _ = module.rebalance_experts(
        torch.from_numpy(load), topology.slots_in_all, 1, 1, topology.gpus
    )
    return Placement(table.numpy(), load.shape[1], topology, allow_duplicates=True)


def compare(module: ModuleType | None) -> None:
    """The table on made-up loads."""
    print(
        "s    GPUs  red.  bound   eplb.py  dup.      s | port  dup.      s | best     dup.      s"
    )
    for spread, gpus, redundant, asked in CASES:
        load, topology = lognormal_load(spread), Topology.even(gpus, 128 + redundant)
        cells = [f"{spread:<4} {gpus:>4} {redundant:>5}  {lower_bound(load, topology):.4f}"]
        runs = [
            best_of_three(partial(solve_placement, load, topology, solver=solver))
            for solver in ("eplb", "best")
        ]
        if module is not None:
            runs.insert(0, best_of_three(partial(theirs, module, load, topology)))
            loads = [np.sort(placement.rank_load(load)) for placement, _ in runs[:2]]
            same = np.allclose(*loads)  # of equal replicas, either may come first
        for placement, seconds in runs:
            balance = placement.imbalance(load)
            cells.append(f"{balance:.5f} {placement.duplicates:>4}  {seconds:>6.3f}")
        ratio = (runs[-2][0].imbalance(load) - 1) / (runs[-1][0].imbalance(load) - 1)
        words = f"{ratio:,.0f} x closer to even"
        if module is not None:
            words += f", {runs[0][1] / runs[-1][1]:,.0f} x faster than eplb.py, "
            words += f"port {runs[0][1] / runs[1][1]:,.0f} x, same loads: {same}"
        if asked is not None:
            met = runs[-1][0].imbalance(load) <= asked
            words += f"; asked {asked:.3f}: {'met' if met else 'MISSED'}"
        print(" | ".join(cells), "|", words)


def out_of_sample(paths: list[Path]) -> None:
    """The table on recordings: fitted on one half, judged on the other."""
    print("\nbest against eplb on the other half: imbalance of the sum, and of a step")
    ratios = []
    for path in paths:
        trace = open_trace(path)
        splits = ("time", "request") if len(np.unique(trace.request)) > 1 else ("time",)
        for split in splits:
            for gpus, redundant in MACHINES:
                if (trace.experts_per_layer + redundant) % gpus:
                    continue
                topology = Topology.even(gpus, trace.experts_per_layer + redundant)
                pair = [
                    place_trace(trace, topology, solver=solver, split=split)
                    for solver in ("eplb", "best")
                ]
                whole = [found.imbalance_test for found in pair]
                steps = [found.steps.step_imbalance.value for found in pair if found.steps]
                ratios.append([(b - 1) / (a - 1) for a, b in (whole, steps)])
                print(
                    f"{path.name:<24} {split:<8} {gpus:>3} GPUs +{redundant:<3} "
                    f"{whole[0]:.4f} -> {whole[1]:.4f}   step {steps[0]:.4f} -> {steps[1]:.4f}"
                )
    mean, worst = np.mean(ratios, axis=0), np.max(ratios, axis=0)
    count = (np.array(ratios) > 1).sum(axis=0)
    for what, place in (("sum", 0), ("step", 1)):
        print(
            f"excess over even, {what}: {mean[place]:.3f} x eplb's on average, "
            f"{worst[place]:.3f} x at worst, above it in {count[place]} of {len(ratios)}"
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eplb", metavar="FILE")
    parser.add_argument("--traces", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.traces is None:
        compare(load_eplb(arguments.eplb))
    else:
        out_of_sample(arguments.traces or [SHIPPED])


if __name__ == "__main__":
    main()
