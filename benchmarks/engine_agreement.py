"""Replays of recorded engine runs beside the hit ratios that the engine itself counted.

    python benchmarks/engine_agreement.py FOLDER

FOLDER is `docs/bench-data/2026-07-15-route-trace` of github.com/Helldez/BigMoeOnEdge (Apache-2.0):
a `NAME.route.csv` with the bytes of experts in its comments, and a `NAME.metrics` whose last line
has the engine's budget and its cumulative hit ratio.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from moeprof.cache import CacheReplay, replay_cache
from moeprof.trace import open_trace

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


def after_prompt(row: CacheReplay) -> float:
    """Hit ratio of the steps after the first, in percent."""
    assert row.event_accesses is not None and row.event_misses is not None
    return 100 * (1 - row.event_misses[:, 1:].sum() / row.event_accesses[:, 1:].sum())


def main() -> None:
    """Print a line a run."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(
        f"{'run':<10}{'MiB':>7}{'engine':>9}{'replay':>9}{'differs':>9}{'decode':>9}{'atomic':>9}"
    )
    for file in sorted(Path(sys.argv[1]).glob("*.route.csv")):
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
        print(
            f"{name:<10}{budget:7.0f}{theirs:9.1f}{percent:9.1f}{percent - theirs:+9.2f}"
            f"{after_prompt(ours):9.1f}{100 * atomic.hit_ratio:9.1f}"
        )


if __name__ == "__main__":
    main()
