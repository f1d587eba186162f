"""The law of offload against published decode speeds, each source predicted by all others.

    python benchmarks/offload_audit.py

58 rows of thirteen sources and the baselines beside them (data/README.md), KTransformers on
Qwen3-Next by experts on the GPUs, and offloaded points that are not in the audit. Prints Markdown:
docs/validation.md is this output.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.audit.validation import offload_section

if __name__ == "__main__":
    print(offload_section())
