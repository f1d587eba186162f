"""Fits the laws of served deployments to all measured rows and writes them for moeprof to read.

    python benchmarks/served_fit.py

The rows are benchmarks/data/served_points.csv, dense models among them; bands are those of rows
held out at every distance. `benchmarks/served_points.py` judges the same fit on rows that it has
not seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.served.predictor import fit_laws, with_bands
from benchmarks.served.rows import load_rows, without_copies
from moeprof.projection.laws import FAMILIARITIES

OUTPUT = Path(__file__).parents[1] / "moeprof" / "projection" / "constants.json"


def main() -> None:
    """Writes the constants; the same bytes for the same rows."""
    rows = without_copies(load_rows())
    laws = with_bands(fit_laws(rows), rows, FAMILIARITIES)
    OUTPUT.write_text(json.dumps(laws.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows, {len({row.configuration for row in rows})} configurations: {OUTPUT}")
    for what, bands in laws.bands.items():
        for name, (low, high) in bands.items():
            print(f"{what} {name}: measured / predicted {low:.2f} to {high:.2f} in 80 %")


if __name__ == "__main__":
    main()
