"""What a replay returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.contracts import Contract
from moeprof.cache.requests import Scope
from moeprof.result import NOT_JSON, Result


class MissStream(NamedTuple):
    """Which experts missed: what a second tier is asked for. All steps, judged or not."""

    counts: NDArray[np.int64]  # [layers, steps]
    experts: list[NDArray[np.uint16]]  # of each layer, [misses] in order of steps


@dataclass(frozen=True)
class CacheReplay(Result):
    """One policy at one size, over the steps that were judged.

    An access is a distinct expert of an event, an event the distinct experts that one step needs
    in one layer. A miss reads the expert's bytes, as many as `precision` says; byte figures are
    None where the model's tensors are not known.
    """

    policy: str
    scope: Scope
    contract: str
    slots: int  # per layer; in all for scope global; on average for scope quota
    accesses: int
    hits: int
    misses: int
    hit_ratio: float
    loads: int  # misses that were admitted to the cache
    misses_per_token: float
    bytes_per_token: float | None
    budget_bytes: int | None  # where capacity was counted in bytes
    quotas: list[int] | None  # slots of each layer, scope quota
    quotas_short_by: int | None  # hits, at most, that the best quotas have more where fitted
    equal_hit_ratio: float | None  # of the same policy with equal slots, scope quota
    accesses_by_layer: NDArray[np.int64] = field(repr=False, metadata=NOT_JSON)  # [layers]
    misses_by_layer: NDArray[np.int64] = field(repr=False, metadata=NOT_JSON)  # [layers]
    event_accesses: NDArray[np.int64] | None = field(
        repr=False, metadata=NOT_JSON
    )  # [layers, steps], judged steps alone
    event_misses: NDArray[np.int64] | None = field(
        repr=False, metadata=NOT_JSON
    )  # [layers, steps], judged steps alone
    miss_stream: MissStream | None = field(default=None, repr=False, metadata=NOT_JSON)


@dataclass(frozen=True)
class CacheReplays(Result):
    """All that one call replayed, over the same accesses."""

    rows: list[CacheReplay]
    contracts: list[Contract]  # the rules that the rows name
    phase: str  # whose tokens were replayed: all, prefill or decode
    layers: int
    experts: int  # of a layer
    steps: int  # judged
    fit_steps: int  # before them: replayed, not counted; what is fitted learned on these
    tokens: int  # of the judged steps
    experts_per_event: float  # distinct experts that a step needs in a layer, mean
    precision: str
    bytes_per_expert: int | None  # mean over layers
    token_cycle: int  # slots, in all, that one token passes through: MoE layers x top-k
    hitless_slots: int  # slots, in all, up to which no global LRU hits: (MoE layers - 1) x top-k
    seed: int
    max_num_seqs: int | None  # requests that ran at a time; None: the trace's own steps
    step_tokens: NDArray[np.int64] = field(repr=False, metadata=NOT_JSON)  # [steps]

    def row(self, policy: str, slots: int | None = None) -> CacheReplay:
        """The first row of `policy`, at `slots` where given. Raises KeyError where none is."""
        for row in self.rows:
            if row.policy == policy and slots in (None, row.slots):
                return row
        raise KeyError(f"{policy} at {slots} slots was not replayed")
