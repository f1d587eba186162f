"""What leaves the engine's thread for the writer thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.routing import Routing


@dataclass(frozen=True)
class Step:
    """One forward with traffic: R requests, T rows, one request after the other."""

    number: int  # forwards of this worker before it, those without traffic included
    requests: NDArray[np.int32]  # [R] our numbers
    prompts: NDArray[np.int32]  # [R] tokens of their prompts
    tokens: NDArray[np.int32]  # [R] rows of each
    routing: Routing

    @property
    def total(self) -> int:
        """T"""
        return int(self.tokens.sum())

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""
        return self.routing.nbytes + self.requests.nbytes + self.prompts.nbytes + self.tokens.nbytes


class Started(NamedTuple):
    """A request was seen for the first time."""

    request: int
    arrival_s: float | None  # since the clock base; None if it ran before the recording
    prompt_tokens: int
    name: str | None


class Ended(NamedTuple):
    """A request will not be seen again."""

    request: int


class Lost(NamedTuple):
    """Tokens of which nothing else is kept."""

    tokens: int
    reason: str
