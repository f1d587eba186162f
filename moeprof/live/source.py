"""What is watched, whatever it is: each poll brings steps that are whole, and how things stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moeprof.live.counts import WindowCounts
from moeprof.result import Result


class State(Enum):
    """How a source stands."""

    RECORDING = "recording"
    WAITING = "waiting"  # there, and nothing is being recorded
    GONE = "gone"  # not reached now; what was seen before holds
    ENDED = "ended"  # nothing more will come


class Shape(NamedTuple):
    """The axes of all figures."""

    layers: tuple[int, ...]  # native indices
    experts: int
    top_k: int


class StepRows(NamedTuple):
    """What one forward pass of the engine routed, over all ranks. T rows, L layers, k experts."""

    step: int
    phase: NDArray[np.int8]  # [T] of Phase
    experts: NDArray[np.unsignedinteger]  # [T, L, k]
    recorded: NDArray[np.bool_] | None  # [T, L]; None: everything was
    # [T] False where the row's token is counted elsewhere, as pipeline ranks see each token; None:
    # every row is a token
    counted: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class RankStatus(Result):
    """One rank that records, or stands by another that does."""

    name: str  # 'dp00-pp00-tp00'
    writes: bool
    recording: bool
    tokens: int
    dropped: int
    pending_bytes: int | None
    error: str | None = None


@dataclass(frozen=True)
class Status:
    """How a source stands. Totals are of the recording, those by phase of what was watched."""

    state: State
    words: str = ""  # one line, where there is something to say
    epoch: int = 0  # another number: another recording, whose steps and totals begin anew
    shape: Shape | None = None  # None while nothing was recorded yet
    model: str = ""
    engine: str = ""
    tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    unseen_tokens: int = 0  # recorded since watching began, and let go before they were seen
    dropped: Mapping[str, int] = field(default_factory=dict)
    sampled_out: int = 0
    rotated: int = 0
    pending_bytes: int | None = None
    written_bytes: int | None = None
    ranks: tuple[RankStatus, ...] = ()
    errors: int = 0  # polls that failed so far


@dataclass(frozen=True)
class Poll:
    """What a poll brought."""

    status: Status
    steps: list[StepRows] = field(default_factory=list)
    counts: list[WindowCounts] = field(default_factory=list)  # of recordings of counts
    behind: bool = False  # there is more to read at once


class Source(Protocol):
    """A server or a trace."""

    name: str

    def poll(self) -> Poll:
        """What is new. InputError where the source cannot be watched at all."""

    def close(self) -> None:
        """Let go of files and connections."""
