"""Predict rows of MoE kernel tables that were not fitted, and print the error of every group.

    python benchmarks/kernel_rows.py FILE.parquet

FILE has the columns of aiconfigurator's systems data as in benchmarks/kernel_fit/data.py: system,
engine, kernel_source, dtype, tokens, tp, ep, routing and latency_ms, at MiniMax-M3's shape. A row
on a timed system is `measured` or `fitted`, so only others test anything; `assumed` says so.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from moeprof.errors import InputError  # noqa: E402
from moeprof.projection.moe_kernels import kernel_groups, timed_kernel_seconds  # noqa: E402

ROWS = ("tokens", "tp", "ep", "routing", "latency_ms")


def predict(group: tuple[str, str, str, str], rows: list[tuple]) -> tuple[np.ndarray, str]:
    """Measured over (predicted, low, high) [rows, 3], and the provenance of the predictions."""
    system, engine, kernel, dtype = group
    known = {own.kernel for own in kernel_groups()}
    factors, found = [], set()
    for tokens, tp, ep, routing, latency_ms in rows:
        answer = timed_kernel_seconds(
            *(system, engine, dtype, routing, tokens),
            tp=tp,
            ep=ep,
            kernel=kernel if kernel in known else None,
        )
        seconds = (answer.seconds, answer.low, answer.high)
        factors.append([latency_ms / 1e3 / float(x) for x in seconds])
        found.add(answer.provenance.value)
    return np.array(factors), "+".join(sorted(found))


def run(path: str) -> None:
    """Print a line a group."""
    table = pq.read_table(path).to_pydict()
    groups = defaultdict(list)
    names = zip(*(table[n] for n in ("system", "engine", "kernel_source", "dtype")), strict=True)
    for name, row in zip(names, zip(*(table[n] for n in ROWS), strict=True), strict=True):
        groups[name].append(row)
    print("| group | rows | provenance | <= 512 | > 512 | p90 | in band |")
    print("|---|---|---|---|---|---|---|")
    for group, rows in sorted(groups.items()):
        try:
            factors, provenance = predict(group, rows)
        except InputError as error:
            print(f"| {' '.join(group)} | {len(rows)} | {error} | | | | |")
            continue
        few = np.array([row[0] <= 512 for row in rows])
        errors = 100 * np.abs(1 / factors[:, 0] - 1)
        halves = [np.median(errors[mask]) if mask.any() else np.nan for mask in (few, ~few)]
        inside = 100 * np.mean((factors[:, 1] >= 1) & (factors[:, 2] <= 1))
        print(
            f"| {' '.join(group)} | {len(rows)} | {provenance} | {halves[0]:.1f} | {halves[1]:.1f} "
            f"| {np.quantile(errors, 0.9):.1f} | {inside:.0f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run(sys.argv[1])
