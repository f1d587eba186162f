"""Make the two data files of `moeprof.projection.moe_kernels` from the collected table.

    python -m benchmarks.kernel_fit.data m3_moe_kernels.parquet

reads the rows that ai-dynamo/aiconfigurator's collector timed at MiniMax-M3's shape (systems data
at 095f58a, Apache-2.0), names hardware as our profiles do, keeps four digits, and draws the
routings that the rows name (`timed_routings.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moeprof.hardware import load_profile
from moeprof.projection.moe_kernels.tables import (
    CELL,
    DATA,
    ROUTINGS,
    TIMED_TOKENS,
    routing_table_file,
    seconds_table_file,
)
from moeprof.projection.moe_kernels.timed_routings import draw_timed_rank

SOURCE = "ai-dynamo/aiconfigurator systems data at 095f58a, Apache-2.0; see LICENSE-data.md"


def four_digits(values: np.ndarray) -> np.ndarray:
    """Values rounded to four digits, which the timings do not have."""
    scale = 10.0 ** (3 - np.floor(np.log10(values)))
    return np.round(values * scale) / scale


def seconds_table(source: Path) -> pa.Table:
    """A row a cell, `seconds` being `TIMED_TOKENS` x `ROUTINGS`, checked to be so."""
    rows = pq.read_table(source)
    names = {name: load_profile(name).name for name in set(rows["system"].to_pylist())}
    columns = {
        "hardware": pa.array([names[name] for name in rows["system"].to_pylist()]),
        "engine": rows["engine"],
        "version": rows["version"],
        "kernel": rows["kernel_source"],
        "dtype": pa.array([{"bfloat16": "bf16"}.get(d, d) for d in rows["dtype"].to_pylist()]),
        "tp": rows["tp"].cast(pa.int16()),
        "ep": rows["ep"].cast(pa.int16()),
        "tokens": rows["tokens"].cast(pa.int32()),
        "routing": rows["routing"],
        "seconds": pa.array(four_digits(rows["latency_ms"].to_numpy() / 1e3), pa.float32()),
    }
    table = pa.table(columns)
    table = table.sort_by([(name, "ascending") for name in (*CELL, "tokens", "routing")])
    expected = [(t, r) for t in TIMED_TOKENS for r in ROUTINGS]
    found = list(zip(table["tokens"].to_pylist(), table["routing"].to_pylist(), strict=True))
    if found != expected * (table.num_rows // len(expected)):
        raise SystemExit(f"{source}: a cell lacks rows, or has others than expected")
    first = table.take(np.arange(0, table.num_rows, len(expected)))
    seconds = pa.FixedSizeListArray.from_arrays(table["seconds"].combine_chunks(), len(expected))
    return first.drop_columns(["tokens", "routing", "seconds"]).append_column("seconds", seconds)


def routing_table() -> pa.Table:
    """Distinct experts, load and busiest expert of each timed (ep, tokens, routing)."""
    rows = [
        {"ep": ep, "tokens": tokens, "routing": routing}
        | draw_timed_rank(routing, tokens, ep)._asdict()
        for ep in (1, 2, 4, 8, 16, 32, 64, 128)
        for tokens in TIMED_TOKENS
        for routing in ROUTINGS
    ]
    types = {"ep": pa.int16(), "tokens": pa.int32(), "routing": pa.string()}
    fields = [pa.field(name, types.get(name, pa.float32())) for name in rows[0]]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def write(table: pa.Table, path: Path, floats: list[str]) -> None:
    """Write `table` small, with its source."""
    grid = f"{len(TIMED_TOKENS)} tokens {TIMED_TOKENS} x routings {ROUTINGS}"
    named = table.replace_schema_metadata({"source": SOURCE, "grid of seconds": grid})
    others = [name for name in table.column_names if not any(f.startswith(name) for f in floats)]
    encodings = dict.fromkeys(floats, "BYTE_STREAM_SPLIT")
    pq.write_table(
        named,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=others,
        column_encoding=encodings,
        write_statistics=False,
    )
    print(f"{path.name}: {table.num_rows} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    DATA.mkdir(exist_ok=True)
    write(seconds_table(Path(sys.argv[1])), seconds_table_file(), ["seconds.list.element"])
    write(routing_table(), routing_table_file(), ["distinct", "load", "busiest"])
