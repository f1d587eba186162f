"""Does serving request by request give the published TTFT and TPOT of closed loops?

    python benchmarks/serving_served.py [--rows 200] [--seed 0]

Random rows of `data/served_points.csv` (InferenceX runs), each simulated as it was measured: 10
requests a place (1,000 at most, or 3 a place), lengths uniform in 0.8 to 1 times the stated ones.
Beside it `project`'s closed form. The step law and the law of the first token were fitted on these
very rows, so the errors of the closed form are not those of unseen rows (served_fit.py has them);
the simulation takes from the second law only the time that is not spent in steps.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moeprof.errors import MoeprofError
from moeprof.projection.serving import engine_policy, make_load
from moeprof.projection.serving.project import kv_capacity, serve_deployment
from moeprof.projection.speed import project_speed
from moeprof.projection.table_row import row_deployment, row_traffic

POINTS = Path(__file__).parent / "data" / "served_points.csv"
Row = dict[str, str]


def predicted(row: Row) -> dict[str, float]:
    """TTFT and TPOT in ms: measured, simulated (mean, median, in steps alone), closed form."""
    deployment, traffic = row_deployment(row), row_traffic(row)
    places = traffic.concurrency
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
    )
    closed = project_speed(deployment, traffic)
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


def sampled(rows: int, seed: int) -> Iterator[Row]:
    """Random rows of the table."""
    table = list(csv.DictReader(POINTS.open()))
    for place in np.random.default_rng(seed).permutation(len(table))[:rows]:
        yield table[place]


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
    for row in sampled(args.rows, args.seed):
        try:
            by_engine.setdefault(row["engine"], []).append(predicted(row))
        except MoeprofError as error:
            print(f"{row['id']}: {error}")
    print("median error (and ratio to the measured) of TTFT and TPOT")
    for engine, found in sorted(by_engine.items()):
        show(engine, found)
    show("all", [each for found in by_engine.values() for each in found])


if __name__ == "__main__":
    main()
