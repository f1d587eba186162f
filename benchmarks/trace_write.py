"""Writing expert ids as a trace, beside numpy's `tofile` of the same array.

    python benchmarks/trace_write.py [FOLDER]

FOLDER should be memory-backed (default /dev/shm): the question is what the format costs, not what
the disk does. The shape is MiniMax-M3's: 57 layers x top-4 of 128 experts, uint8.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from timing import best_of

from moeprof.model import MoEModel
from moeprof.trace import TokenRows, TraceWriter, open_trace

TOKENS = 65_536
BLOCKS = 40


def m3_rows(model: MoEModel) -> TokenRows:
    """One block of random routing."""
    rng = np.random.default_rng(0)
    shape = (TOKENS, len(model.moe_layers), model.top_k)
    return TokenRows(
        step=np.zeros(TOKENS, np.int64),  # one block is written many times, and no step goes back
        request=np.zeros(TOKENS, np.int32),
        position=np.arange(TOKENS, dtype=np.int32),
        phase=np.ones(TOKENS, np.int8),
        experts=rng.integers(0, model.experts, shape, np.uint8),
    )


def main() -> None:
    """Print GB/s of ids written, the ratio to tofile, and the time to open."""
    base = Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/shm")
    model = MoEModel.preset("minimax-m3")
    rows = m3_rows(model)
    folder = Path(tempfile.mkdtemp(dir=base))
    path = folder / "run.moetrace"

    def write_trace() -> None:
        with TraceWriter(path, model, force=True) as writer:
            for _ in range(BLOCKS):
                writer.write(rows)

    def write_raw() -> None:
        with (folder / "raw").open("wb") as out:
            for _ in range(BLOCKS):
                rows.experts.tofile(out)

    def read_layer() -> int:
        return sum(int(part.experts[0, 0]) for part in open_trace(path).batches(30))

    try:
        seconds = best_of(5, trace=write_trace, tofile=write_raw)
        seconds |= best_of(5, open=read_layer)
    finally:
        shutil.rmtree(folder)
    size = rows.experts.nbytes * BLOCKS / 1e9
    print(f"ids            {size:.2f} GB ({BLOCKS * TOKENS:,} tokens)")
    print(f"trace          {size / seconds['trace']:.2f} GB/s, closed and checksummed")
    print(f"numpy tofile   {size / seconds['tofile']:.2f} GB/s, ids alone, as they lie")
    print(f"ratio          {seconds['tofile'] / seconds['trace']:.2f}")
    print(f"open, map one layer: {seconds['open'] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
