"""Importing a plain CSV, beside pyarrow.csv reading the same file into a table and no more.

    python benchmarks/import_csv.py [FOLDER]

The shape is MiniMax-M3's: 57 layers x top-4 of 128 experts, a row for each (token, layer). Written
by our own export, so that is timed too.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from pyarrow import csv
from timing import best_of

from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace
from moeprof.trace.formats import export_trace, import_trace

TOKENS = 50_000


def m3_trace(model: MoEModel) -> Trace:
    """Random routing of one request."""
    rng = np.random.default_rng(0)
    shape = (TOKENS, len(model.moe_layers), model.top_k)
    rows = TokenRows(
        step=np.arange(TOKENS, dtype=np.int64),
        request=np.zeros(TOKENS, np.int32),
        position=np.arange(TOKENS, dtype=np.int32),
        phase=np.ones(TOKENS, np.int8),
        experts=rng.integers(0, model.experts, shape, np.uint8),
    )
    return Trace.in_memory(model, rows)


def main() -> None:
    """Print (token, layer) rows a second, the ratio to the parser alone, and peak memory."""
    model = MoEModel.preset("minimax-m3")
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    file, trace = folder / "run.csv", m3_trace(model)
    try:
        seconds = best_of(
            3,
            export=lambda: export_trace(trace, file, "csv", force=True),
            parse=lambda: csv.read_csv(file),
            read=lambda: import_trace(file, folder / "t", model=model, force=True),
        )
        size = file.stat().st_size
    finally:
        shutil.rmtree(folder)
    rows = TOKENS * len(model.moe_layers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"file           {rows:,} rows, {size / 1e6:.0f} MB")
    print(f"import         {rows / seconds['read'] / 1e6:.2f} million rows/s, to a closed trace")
    print(f"pyarrow.csv    {rows / seconds['parse'] / 1e6:.2f} million rows/s, parsed and no more")
    print(f"ratio          {seconds['parse'] / seconds['read']:.2f}")
    print(f"export         {rows / seconds['export'] / 1e6:.2f} million rows/s")
    print(f"peak memory    {peak:.0f} MiB, with the parser's whole table")


if __name__ == "__main__":
    main()
