"""What a replay with prefetch returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.requests import Scope
from moeprof.quantity import Quantity
from moeprof.result import NOT_JSON, Result


@dataclass(frozen=True)
class PrefetchReplay(Result):
    """One predictor at one size, over the steps that were judged.

    Of `prefetched` fetches each was `useful` (there when first needed), `late` (needed before it
    was), `wasted` (evicted unused), `unused` (there and unused at the end) or `dropped` (never
    begun: its time had passed, or nothing could make room). A miss found its expert not there; it
    is `polluting` where a prefetch had evicted that expert and what came for it was not used since.
    Byte figures are per token, and None where the model's tensors are not known.
    """

    predictor: str  # "none": the same cache without prefetch
    scope: Scope
    contract: str
    policy: str
    slots: int  # per layer; in all for scope global
    accesses: int
    hits: int
    misses: int
    hit_ratio: float
    misses_per_token: float
    precision: float | None  # of the experts named, those that were needed
    recall: float | None  # of the experts needed, those that were named
    prefetched: int
    useful: int
    late: int
    wasted: int
    unused: int
    dropped: int
    polluting: int
    stall_layers_per_token: float  # waiting for experts, in times that one layer computes for
    stall_ms_per_token: Quantity | None  # where that time is known
    demand_bytes: float | None  # misses that were not prefetched
    useful_bytes: float | None
    late_bytes: float | None
    wasted_bytes: float | None  # with those unused at the end
    polluting_bytes: float | None
    bytes_per_token: float | None  # all that the link moves
    event_misses: NDArray[np.int64] | None = field(
        repr=False, metadata=NOT_JSON
    )  # [steps, layers], also of the steps that were learned on
    event_stalls: NDArray[np.float64] | None = field(
        repr=False, metadata=NOT_JSON
    )  # [steps, layers] in times that one layer computes for


@dataclass(frozen=True)
class PrefetchReplays(Result):
    """All that one call replayed, over the same accesses; the first rows are without prefetch."""

    rows: list[PrefetchReplay]
    left_out: dict[str, str]  # predictors that this recording does not allow, and why
    width: int  # experts named an event
    lookahead: int  # events between naming and needing
    link_experts_per_layer: Quantity | None  # experts moved while a layer computes; None: at once
    layer_ms: Quantity | None  # how long that is
    recall: float  # of predictor recall
    phase: str
    layers: int
    experts: int  # of a layer
    steps: int  # judged
    fit_steps: int  # before them: replayed without prefetch; what is fitted learned on these
    tokens: int  # of the judged steps
    precision: str
    bytes_per_expert: int | None  # mean over layers
    seed: int
    max_num_seqs: int | None

    def row(self, predictor: str, slots: int | None = None) -> PrefetchReplay:
        """The first row of `predictor`, at `slots` where given. Raises KeyError where none is."""
        for row in self.rows:
            if row.predictor == predictor and slots in (None, row.slots):
                return row
        raise KeyError(f"{predictor} at {slots} slots was not replayed")
