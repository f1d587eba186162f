"""How fast is a grid swept: one worker and several, beside project_deployment in a plain loop?

`python benchmarks/sweep.py [--points 3000] [--workers 2]`. The loop names the same deployments and
writes nothing, so a ratio of 1 means that order, table and draft cost nothing. Workers start within
the time that is taken: each loads Python, NumPy and the profiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from moeprof.hardware import load_hardware
from moeprof.model import load_model
from moeprof.projection import project_deployment
from moeprof.sweep import Grid, make_grid, process_executor, sweep_grid


def grid_of(points: int) -> Grid:
    """MiniMax-M3 in two formats and splits, over lengths and concurrencies."""
    lengths = [128 * step for step in range(1, 1 + max(1, points // 32))]
    return make_grid(
        {
            "model": "minimax-m3",
            "hardware": ["8xh200", "8xb200"],
            "precision": ["mxfp8", "nvfp4"],
            "ep": [1, 8],
            "concurrency": [1, 16, 64, 256],
            "input_len": lengths,
        }
    )


def plain_loop(grid: Grid) -> None:
    """What sweep is beside."""
    models = {name: load_model(str(name)) for name in grid.values["model"]}
    clusters = {name: load_hardware(str(name)) for name in grid.values["hardware"]}
    for number in range(len(grid)):
        point = dict(grid.point(number))
        model, cluster = models[point.pop("model")], clusters[point.pop("hardware")]
        project_deployment(model, cluster, **point)  # type: ignore[arg-type]


def swept(grid: Grid, folder: Path, workers: int) -> None:
    """The sweep, with its workers' start."""
    output = folder / f"{workers}.csv"
    if workers == 1:
        sweep_grid(grid, output, force=True)
        return
    with process_executor(workers) as executor:
        sweep_grid(grid, output, executor=executor, force=True)


def seconds_of(task: Callable[[], None]) -> float:
    """Of one run."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    grid = grid_of(options.points)
    plain_loop(grid_of(32))  # what is read once is read
    with TemporaryDirectory() as folder:
        loop = seconds_of(lambda: plain_loop(grid))
        one = seconds_of(lambda: swept(grid, Path(folder), 1))
        many = seconds_of(lambda: swept(grid, Path(folder), options.workers))
    size = len(grid)
    print(f"{size} points, each a whole deployment: memory, speed, bands, cost")
    for name, seconds in (
        ("plain loop", loop),
        ("sweep, 1 worker", one),
        (f"sweep, {options.workers} workers", many),
    ):
        print(f"{name:18} {size / seconds:6.0f} points/s  {loop / seconds:.2f} x the loop")


if __name__ == "__main__":
    main()
