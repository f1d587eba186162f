"""Can synthetic routing be given what was published of a model nobody shared a recording of?

    python benchmarks/synth_published.py

Qwen3-30B-A3B, 128 experts, top-8. Experts that a step needs in a layer by batch: arXiv 2608.07911.
Repeat of a token's experts at the next token, and the hit ratio of an LRU cache of 40 % of the
experts over three texts: kekzl/imp, pull request 1359. One set of options for all of them; the
published figures are of different texts and quantizations.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from moeprof.analysis import analyze_locality
from moeprof.cache import lru_curve
from moeprof.model import MoEModel
from moeprof.report.text.layout import table
from moeprof.synth import RoutingTargets, Traffic, synthesize_trace
from moeprof.trace import open_trace

UNION = {2: 15.02, 4: 26.58, 8: 42.63, 16: 59.21}  # distinct experts of a layer by batch
UNIFORM = {2: 15.5, 4: 29.12, 8: 51.62, 16: 82.42}
REPEAT = 0.45
SLOTS, HIT_RATIO = 51, (0.947 + 0.900 + 0.953) / 3  # 40 % of 128, per layer
TARGETS = RoutingTargets(imbalance=10.5, repeat=REPEAT, decay=3, request_spread=2)
LAYERS = 8


@dataclass(frozen=True)
class Shown:
    """What a synthetic recording shows of the published figures."""

    union: dict[int, float]
    repeat: float
    hit_ratio: float


def show(folder: Path, layers: int = LAYERS, tokens: int = 16_000, seed: int = 1) -> Shown:
    """Draw 16 requests at a time for the union, and one at a time for the cache."""
    model = MoEModel("qwen3-30b-a3b", "qwen3_moe", 1, layers, tuple(range(layers)), 128, 8)
    for name, traffic in (
        ("together", Traffic(prompt_tokens=8, output_tokens=128, concurrency=16)),
        ("alone", Traffic(prompt_tokens=8, output_tokens=400)),
    ):
        path = folder / name
        synthesize_trace(
            model, path, tokens=tokens, targets=TARGETS, traffic=traffic, seed=seed, force=True
        )
    together = analyze_locality(open_trace(folder / "together"))
    alone = open_trace(folder / "alone")
    curve = lru_curve(alone)
    repeat = analyze_locality(alone).next_token_repeat
    assert repeat is not None
    union = {batch: together.distinct_by_batch[batch] for batch in UNION}
    return Shown(union, repeat, curve.hit_ratio[list(curve.slots).index(SLOTS)])


def main() -> None:
    """A line a figure: published, synthetic, and what no skew at all would give."""
    with tempfile.TemporaryDirectory() as folder:
        shown = show(Path(folder))
    rows = [
        _row(f"experts a layer, batch {n}", UNION[n], shown.union[n], UNIFORM[n]) for n in UNION
    ]
    rows.append(_row("repeat at the next token", REPEAT, shown.repeat, 8 / 128))
    rows.append(_row("LRU hit ratio, 51 of 128 slots", HIT_RATIO, shown.hit_ratio, SLOTS / 128))
    print(table(["Qwen3-30B-A3B", "published", "synthetic", "differs", "uniform"], rows))


def _row(name: str, published: float, synthetic: float, uniform: float) -> list[str]:
    differs = f"{synthetic / published - 1:+.1%}"
    return [name, f"{published:.4g}", f"{synthetic:.4g}", differs, f"{uniform:.4g}"]


if __name__ == "__main__":
    main()
