"""Does serving request by request give the TTFT and TPOT of published closed loops?

    python benchmarks/serving_served.py [--rows 200] [--seed 0]

The laws are fitted on half of the configurations of `data/served_points.csv` (the split of
`served_points.py` by that seed), and rows drawn from the other half are simulated as they were
measured: 10 requests a place (1,000 at most, or 3 a place), lengths uniform in 0.8 to 1 times the
stated ones. Beside it `project`'s closed form under the same laws. "Steps" leaves out what a first
token takes beside steps.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.served.predictor import fit_laws
from benchmarks.served.rows import ServedRow, load_rows, moe_rows, without_copies
from benchmarks.served.splits import seeded_splits
from moeprof.errors import MoeprofError
from moeprof.projection import Laws, shipped_laws
from moeprof.projection.serving import engine_policy, make_load
from moeprof.projection.serving.project import kv_capacity, serve_deployment
from moeprof.projection.speed import project_speed
from moeprof.projection.table_row import row_deployment, row_traffic

Row = dict[str, str]


def predicted(row: Row, laws: Laws) -> dict[str, float]:
    """TTFT and TPOT in ms: measured, simulated (mean, median, in steps alone), closed form."""
    deployment, traffic = row_deployment(row), row_traffic(row)
    places = traffic.concurrency * deployment.parallelism.dp  # the table's is that of one group
    load = make_load(
        concurrency=places,
        input_len=traffic.input_len,
        output_len=traffic.output_len,
        length_spread=0.2,
        num_requests=min(10 * places, max(3 * places, 1000)),
    )
    card = deployment.cluster.profile.memory_bytes.value
    served = serve_deployment(
        deployment,
        load,
        policy=engine_policy(deployment.engine, card),
        kv_tokens=kv_capacity(deployment),
        laws=laws,
    )
    closed = project_speed(deployment, traffic, laws=laws)
    return {
        "ttft": float(row["ttft_ms"]),
        "ttft_mean": served.ttft_ms["mean"] or 0.0,
        "ttft_p50": served.ttft_ms["p50"] or 0.0,
        "ttft_steps": (served.ttft_ms["mean"] or 0.0) - served.delay_ms,
        "ttft_closed": closed.ttft_ms.value,
        "tpot": float(row["tpot_ms"]),
        "tpot_mean": served.tpot_ms["mean"] or 0.0,
        "tpot_closed": closed.tpot_ms.value,
    }


def held_out(rows: int, seed: int) -> tuple[Laws, list[Row]]:
    """The laws of one half, with the shipped bands, and random rows of the other."""
    (split,) = seeded_splits(moe_rows(without_copies(load_rows())), [seed])
    laws = replace(fit_laws(split.train), bands=shipped_laws().bands)
    places = np.random.default_rng(seed).permutation(len(split.test))[:rows]
    return laws, [words(split.test[place]) for place in places]


def words(row: ServedRow) -> Row:
    """The row in the columns of a table."""
    return {name: "" if value is None else str(value) for name, value in vars(row).items()}


def show(name: str, found: list[dict[str, float]]) -> None:
    """Median error and median ratio of each prediction."""
    parts = [f"{name:8} {len(found):4} rows"]
    for measured, kinds in (
        ("ttft", ("mean", "p50", "steps", "closed")),
        ("tpot", ("mean", "closed")),
    ):
        for kind in kinds:
            ratios = np.array([f[f"{measured}_{kind}"] / f[measured] for f in found])
            error = np.median(np.abs(ratios - 1))
            parts.append(f"{measured} {kind} {error:6.1%} (x {np.median(ratios):.2f})")
    print("; ".join(parts))


def main() -> None:
    """Simulate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    by_engine: dict[str, list[dict[str, float]]] = {}
    laws, rows = held_out(args.rows, args.seed)
    for row in rows:
        try:
            by_engine.setdefault(row["engine"], []).append(predicted(row, laws))
        except MoeprofError as error:
            print(f"{row['id']}: {error}")
    print("median error (and ratio to the measured) of TTFT and TPOT")
    for engine, found in sorted(by_engine.items()):
        show(engine, found)
    show("all", [each for found in by_engine.values() for each in found])


if __name__ == "__main__":
    main()
