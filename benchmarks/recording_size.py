"""What a token of MiniMax-M3 takes on disk, and how exact a sample of requests is: the figures of
docs/capture.md.

    python benchmarks/recording_size.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from trace_write import TOKENS, m3_rows

from moeprof import MoEModel, TraceWriter, open_trace

SHIPPED = Path(__file__).parents[1] / "traces" / "tiny-m3.moetrace"
RATE, DRAWS = 0.25, 400


def main() -> None:
    """Print bytes a token, GB a day, and c of error = c x sqrt((1 - RATE) / n)."""
    model = MoEModel.preset("minimax-m3")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.moetrace"
        with TraceWriter(path, model) as writer:
            writer.write(m3_rows(model))
        size = sum(file.stat().st_size for file in path.rglob("*.arrows"))
    each = size / TOKENS
    print(f"{each:.1f} bytes a token; {each * 86_400 * 1e4 / 1e9:.0f} GB a day at 10,000 tokens/s")
    print(f"c = {spread():.2f}, mean of the experts of {SHIPPED.name}, {DRAWS} samples")


def spread() -> float:
    """Relative standard error of an expert's share of its layer, times sqrt(n / (1 - RATE))."""
    trace = open_trace(SHIPPED)
    requests, experts = int(trace.request.max()) + 1, trace.manifest.experts
    kept = np.random.default_rng(0).random((DRAWS, requests)) < RATE
    errors = []
    for layer in trace.layers:
        cell = trace.request[:, None].astype(np.int64) * experts + trace.experts(layer)
        loads = np.bincount(cell.ravel(), minlength=requests * experts)
        loads = loads.reshape(requests, experts)
        shares = kept @ loads / (kept @ loads.sum(axis=1))[:, None]
        truth = loads.sum(axis=0) / loads.sum()
        used = truth > 0
        errors.append(np.std(shares - truth, axis=0)[used] / truth[used])
    return float(np.mean(np.concatenate(errors)) * np.sqrt(requests * RATE / (1 - RATE)))


if __name__ == "__main__":
    main()
