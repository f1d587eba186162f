"""One forward pass on its way from the hooks to the writer thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.routing import HostCopy, Routing


@dataclass(frozen=True)
class Beams:
    """Rows of a batch that are hypotheses: `width` of each prompt, `returned` of which come out."""

    width: int
    returned: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Requests that go through the model side by side, one a row, from the first forward on."""

    first_request: int  # row r is request first_request + r
    rows: int
    prompt_width: int  # columns of the padded prompt: a token in a column below it is prefill
    arrival: float  # time.time() of the call that brought them
    labels: tuple[str | None, ...]  # one a request
    stop_ids: tuple[int, ...] = ()  # fed back after the prompt, one of these says the row is done
    beams: Beams | None = None

    @property
    def requests(self) -> int:
        """How many requests it is."""
        beams = self.beams
        return self.rows if beams is None else self.rows // beams.width * beams.returned

    def row_of(self, request: int) -> int:
        """A row that has the prompt of its `request`-th request."""
        beams = self.beams
        return request if beams is None else request // beams.returned * beams.width


@dataclass(slots=True)
class Step:
    """One forward pass over `batch.rows` rows of `columns` tokens each, T = rows x columns.

    `past` columns are in the cache already. `routing` is None where the step is only counted,
    for `drop_reason`. The mask and the positions are given where they say something new.
    """

    index: int
    batch: Batch
    columns: int
    past: int
    mask: HostCopy | None = None  # [rows, past + columns] or [rows, columns]; 0 is padding
    positions: HostCopy | None = None  # [rows or 1, columns]
    token_ids: HostCopy | None = None  # [rows, columns], where there is no routing to hold them
    has_token_ids: bool = False  # does `routing` hold them?
    recomputes: bool = False  # no cache: the rows hold the whole sequence every time
    routing: Routing | None = None
    drop_reason: str = ""

    @property
    def tokens(self) -> int:
        """T, padding included."""
        return self.batch.rows * self.columns

    @property
    def nbytes(self) -> int:
        """Size of what it holds."""
        copies = (self.mask, self.positions, self.token_ids, self.routing)
        return sum(copy.nbytes for copy in copies if copy is not None)


@dataclass(slots=True)
class PackedStep:
    """One forward pass over tokens of many requests in one row, as continuous batching runs it.

    n tokens of traffic come first among the T that were routed; padding may follow.
    """

    index: int
    request: NDArray[np.int32]  # [n]
    position: NDArray[np.int32]  # [n]
    phase: NDArray[np.int8]  # [n]
    routing: Routing | None = None
    drop_reason: str = ""

    @property
    def tokens(self) -> int:
        """n."""
        return len(self.request)

    @property
    def nbytes(self) -> int:
        """Size of what it holds."""
        own = self.request.nbytes + self.position.nbytes + self.phase.nbytes
        return own + (self.routing.nbytes if self.routing is not None else 0)


@dataclass(frozen=True)
class BatchEnd:
    """No further forward will continue `batch`; `new_tokens` is the most a row generated."""

    batch: Batch
    new_tokens: int | None = None
    sequences: HostCopy | None = None  # [requests, columns] new tokens of a beam search
    lengths: tuple[int, ...] | None = None  # of these


@dataclass(frozen=True)
class Lost:
    """Tokens, padding included, of which not even the metadata was kept.

    What followed in the requests named can no longer be placed, so it is dropped as well.
    """

    tokens: int
    reason: str
    batches: tuple[Batch, ...] = ()  # those that lost a step
