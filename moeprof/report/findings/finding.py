"""One finding: the unit that the page and the terminal show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeprof.quantity import Provenance
from moeprof.result import Result

Tone = Literal["problem", "notice", "fact"]


@dataclass(frozen=True)
class Finding(Result):
    """One sentence that states, one that says what it means, and where the number comes from."""

    headline: str
    meaning: str
    provenance: Provenance
    tone: Tone = "fact"
