"""Replays of recorded engine runs beside the hit ratios that the engine itself counted.

    python benchmarks/engine_agreement.py FOLDER

FOLDER is searched, with all below it, for route traces of BigMoeOnEdge (github.com/Helldez/
BigMoeOnEdge, Apache-2.0; its own are in docs/bench-data): a `NAME.route.csv` with the bytes of
experts in its comments and, for every routed expert, whether it was resident; and a
`NAME.metrics` whose last line has the engine's budget and its cumulative hit ratio. `events` is
the share of (step, layer) events whose misses the replay gives one for one.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.cache import CacheReplay, replay_cache
from moeprof.trace import Phase, Trace, open_trace

MIB = 2**20


def expert_bytes(file: Path) -> dict[int, int]:
    """Bytes of one expert by layer, from the comments of a route trace."""
    pattern = re.compile(r"# layer=(\d+) expert_bytes=(\d+)")
    found = (pattern.match(line) for line in file.open())
    return {int(match[1]): int(match[2]) for match in found if match}


def counted(file: Path) -> tuple[float, float]:
    """The engine's budget in MiB and its hit ratio in percent."""
    summary = file.read_text()
    values = dict(re.findall(r"(\w[\w/]*)=([\d.]+)", summary[summary.index("# summary") :]))
    return float(values["cache_budget_MiB"]), float(values["cache_hit_pct"])


def after_prompt(row: CacheReplay, trace: Trace) -> float:
    """Hit ratio of the steps without prompt tokens, in percent."""
    assert row.event_accesses is not None and row.event_misses is not None
    prompts = set(trace.step[trace.phase == Phase.PREFILL].tolist())
    decode = [step not in prompts for step in sorted(set(trace.step.tolist()))]
    return 100 * (1 - row.event_misses[:, decode].sum() / row.event_accesses[:, decode].sum())


def recorded_misses(file: Path, layers: list[int]) -> NDArray[np.int64]:
    """[layers, steps] distinct experts that the engine found missing; a prompt is one step."""
    missing: dict[tuple[str, str, str], set[tuple[int, str]]] = {}
    for row in _rows(file):
        step = "" if row["phase"] == "0" else row["step"]
        held = missing.setdefault((row["turn"], row["phase"], step), set())
        if row["residency"] == "0":
            held.add((int(row["layer"]), row["expert"]))
    return np.array(
        [[sum(one == layer for one, _ in held) for held in missing.values()] for layer in layers]
    )


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open() as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def main() -> None:
    """Print a line a run."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(
        f"{'run':<10}{'MiB':>7}{'engine':>9}{'replay':>9}{'differs':>9}{'events':>9}{'decode':>9}"
        f"{'atomic':>9}"
    )
    for file in sorted(Path(sys.argv[1]).rglob("*.route.csv")):
        name = file.name.removesuffix(".route.csv")
        budget, theirs = counted(file.with_name(f"{name}.metrics"))
        trace = open_trace(file)
        sizes = {layer: size for layer, size in expert_bytes(file).items() if layer in trace.layers}
        ours, atomic = (
            replay_cache(
                trace,
                budget_bytes=int(budget * MIB),
                scope="global",
                contract=contract,
                expert_bytes=sizes,
                events=True,
            ).rows[0]
            for contract in ("bigmoeonedge", "atomic")
        )
        percent = 100 * ours.hit_ratio
        same = recorded_misses(file, list(trace.layers)) == ours.event_misses
        print(
            f"{name:<10}{budget:7.0f}{theirs:9.1f}{percent:9.1f}{percent - theirs:+9.2f}"
            f"{100 * same.mean():9.2f}{after_prompt(ours, trace):9.1f}{100 * atomic.hit_ratio:9.1f}"
        )


if __name__ == "__main__":
    main()
