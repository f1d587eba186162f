"""Quantiles of a trace of requests, as `moeprof/projection/serving/workloads.toml` states them.

    python benchmarks/workload_lengths.py FILE.csv|FILE.jsonl [--above TOKENS]

FILE is what `serve-sim --requests` reads. Of a Mooncake trace, whose `hash_ids` name blocks of 512
prompt tokens, also the share of each prompt whose leading blocks were seen before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from moeprof.projection.serving import read_requests

LEVELS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1]
BLOCK_TOKENS = 512


def cached_shares(path: Path) -> list[float]:
    """Share of each prompt, in the order of the file, that an endless prefix cache would hold."""
    seen: set[int] = set()
    shares = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        blocks = row["hash_ids"]
        hits = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
        shares.append(min(1.0, hits * BLOCK_TOKENS / max(row["input_length"], 1)))
    return shares


def main() -> None:
    """Read, reduce, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--above", type=int, default=0, help="prompts of more tokens only")
    args = parser.parse_args()
    requests = read_requests(args.file)
    kept = np.array([r.input_len > args.above for r in requests])
    columns = {
        "input_tokens": np.array([float(r.input_len) for r in requests])[kept],
        "output_tokens": np.array([float(r.output_len) for r in requests])[kept],
    }
    if '"hash_ids"' in args.file.open().readline():
        columns["cached_share"] = np.array(cached_shares(args.file))[kept]
    print(f"{kept.sum():,} of {len(kept):,} requests; quantiles at {LEVELS}")
    for name, values in columns.items():
        levels = [round(float(v), 3) for v in np.quantile(values, LEVELS)]
        print(f"{name}: mean {values.mean():.4g}, {levels}")


if __name__ == "__main__":
    main()
