"""Fits the laws of served deployments to all measured rows and writes them for moeprof to read.

    python benchmarks/served_fit.py

The rows are benchmarks/data/served_points.csv, dense models among them, and the single reports of
m3_serving.csv and throughput_points.csv whose deployment is stated. Bands are those of rows held
out at every distance. `benchmarks/served_points.py` judges the same fit on rows that it has not
seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.served.predictor import with_reports
from benchmarks.served.reports import report_rows
from benchmarks.served.rows import load_rows, without_copies
from moeprof.projection.laws import FAMILIARITIES

OUTPUT = Path(__file__).parents[1] / "moeprof" / "projection" / "constants.json"


def main() -> None:
    """Writes the constants; the same bytes for the same rows."""
    rows, reports = without_copies(load_rows()), report_rows()
    laws = with_reports(rows, reports)
    OUTPUT.write_text(json.dumps(laws.to_dict(), indent=1) + "\n", encoding="utf-8")
    configurations = len({row.configuration for row in rows})
    print(f"{len(rows)} rows of {configurations} configurations, {len(reports)} reports: {OUTPUT}")
    for what, bands in laws.bands.items():
        for name in FAMILIARITIES:
            low, high = bands[name]
            print(f"{what} {name}: measured / predicted {low:.2f} to {high:.2f} in 80 %")


if __name__ == "__main__":
    main()
