"""Synthetic routing of a million MiniMax-M3 tokens, beside numpy drawing as many ids blindly.

    python benchmarks/synth.py [--tokens N] [--folder FOLDER]

57 layers x top-4 of 128. numpy's `integers` is a bound and no peer: even, independent, repeating
ids, on one core. FOLDER should be memory-backed (default /dev/shm).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from moeprof.model import MoEModel
from moeprof.synth import SynthResult, Traffic, synthesize_trace


def main() -> None:
    """Print seconds, tokens a second, the CPU seconds of all threads, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    args = parser.parse_args()
    model = MoEModel.preset("minimax-m3")
    folder = Path(tempfile.mkdtemp(dir=args.folder))

    def synthesize(tokens: int) -> SynthResult:
        path, traffic = folder / "run.moetrace", Traffic(concurrency=16)
        return synthesize_trace(model, path, tokens=tokens, traffic=traffic, force=True)

    try:
        synthesize(2000)  # compile
        started, busy = time.perf_counter(), time.process_time()
        result = synthesize(args.tokens)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    finally:
        shutil.rmtree(folder)
    started = time.perf_counter()
    shape = (args.tokens, len(model.moe_layers), model.top_k)
    np.random.default_rng(0).integers(0, model.experts, shape, np.uint8)
    blind = time.perf_counter() - started
    print(f"synth          {seconds:6.2f} s, {args.tokens / seconds:,.0f} tokens/s, on disk")
    print(
        f"               {busy:6.2f} s of CPU, {busy / args.tokens / shape[1] * 1e9:.0f} ns a set"
    )
    print(f"numpy integers {blind:6.2f} s, one core, nothing written")
    print(f"ratio          {seconds / blind:6.1f}")
    print(f"sha256         {result.sha256}")


if __name__ == "__main__":
    main()
