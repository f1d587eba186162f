"""The laws that were fitted to served deployments, and how far they were off where unseen.

`constants.json` holds them; `benchmarks/served_fit.py` writes it and nothing else does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from moeprof.projection.step.pooled import PooledLaw
from moeprof.quantity import Provenance


class Band(NamedTuple):
    """Measured over predicted, the 10th and the 90th percentile of rows that were held out."""

    low: float
    high: float


@dataclass(frozen=True)
class Laws:
    """The law of a step, the law of the first token, and their bands by familiarity.

    `bands` maps "tpot" and "ttft" to a band for each of `FAMILIARITIES`.
    """

    step: PooledLaw
    first_token: PooledLaw
    bands: Mapping[str, Mapping[str, Band]] = field(hash=False)
    source: str = ""
    # Models and GPUs known from single reports alone; groups of "served" that a user's own
    # measurements made known.
    reported: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "source": self.source,
            "reported": sorted(self.reported),
            "step": self.step.to_dict(),
            "first_token": self.first_token.to_dict(),
            "bands": {
                what: {name: [round(end, 4) for end in band] for name, band in bands.items()}
                for what, bands in self.bands.items()
            },
        }


# How near a deployment is to what the laws were fitted on, nearest first. Each has a band from rows
# that were held out at that distance.
FAMILIARITIES = {
    "calibrated": "two constants are from measurements of this very system",
    "served": "this model was served by these kernels, in other splits over ranks",
    "reported": "the model or the GPU is known from single reports alone",
    "stack": "the model and the GPU were seen, not together with this engine and format",
    "gpu": "the GPU was never seen",
    "model": "the model was never seen",
    "stranger": "neither the GPU nor the model was ever seen",
}


def familiarity(laws: Laws, groups: Mapping[str, str]) -> str:
    """Which of `FAMILIARITIES` the deployment in `groups` is of."""
    if groups["served"] in laws.calibrated:
        return "calibrated"
    law = laws.step
    if not laws.reported.isdisjoint((groups["model"], groups["gpu"])):
        return "reported"
    gpu, model = law.knows("gpu", groups["gpu"]), law.knows("model", groups["model"])
    if gpu and model:
        return "served" if law.knows("served", groups["served"]) else "stack"
    if model:
        return "gpu"
    return "model" if gpu else "stranger"


def provenance_of(law: PooledLaw, groups: Mapping[str, str]) -> Provenance:
    """Fitted where the engine's kernels on GPUs of this generation were seen, else assumed."""
    seen = law.knows("stack", groups["stack"]) or law.knows("generation", groups["generation"])
    return Provenance.FITTED if seen else Provenance.ASSUMED


@cache
def shipped_laws() -> Laws:
    """The laws that ship with moeprof."""
    text = files("moeprof.projection").joinpath("constants.json").read_text(encoding="utf-8")
    plain = json.loads(text)
    return Laws(
        step=PooledLaw.from_dict(plain["step"]),
        first_token=PooledLaw.from_dict(plain["first_token"]),
        bands={
            what: {name: Band(*ends) for name, ends in bands.items()}
            for what, bands in plain["bands"].items()
        },
        source=plain["source"],
        reported=frozenset(plain["reported"]),
    )
