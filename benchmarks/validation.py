"""Every validation figure of projections anew, page by page.

    python benchmarks/validation.py          # prints what it runs; some ten minutes
    python benchmarks/validation.py --fit    # fits the constants first, which takes longer

Writes docs/validation/*.md and the figures beside them, from benchmarks/data and the tables that
ship. What AIConfigurator answers is data: benchmarks/aiconfigurator_predict.py made it, in an
environment of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PAGES = {
    "memory_rows.py": "memory.md: the ledger beside published bytes",
    "moe_kernels.py": "moe_kernels.md: kernel times on what was left out; fits kernels.toml too",
    "served_aiconfigurator.py": "aiconfigurator.md: the peer on the served rows",
    "served_points.py": "served.md: speeds of deployments, models and systems left out",
}


def main() -> None:
    """Stops at the first script that fails."""
    if "--fit" in sys.argv:
        _run("served_fit.py", "moeprof/projection/constants.json: the laws and their bands")
    for script, page in PAGES.items():
        _run(script, page, "--write")


def _run(script: str, page: str, *options: str) -> None:
    print(f"{page} ...", end=" ", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise SystemExit(f"\n{script} failed with {done.returncode}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
