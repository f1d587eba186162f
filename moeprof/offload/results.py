"""What a plan returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.cache import Scope
from moeprof.offload.memory import OffloadMemory
from moeprof.offload.rates import Rates
from moeprof.offload.timing import Serve, Service
from moeprof.offload.traffic import Traffic
from moeprof.offload.work import DecodeWork
from moeprof.quantity import Provenance
from moeprof.result import NOT_JSON, Result


@dataclass(frozen=True)
class OffloadRow(Result):
    """One policy with one size of GPU memory.

    `share` maps resources to shares of the time on the critical path, which sum to one, and
    `bound` is the largest. `tok_s_limit` is what no policy can reach with the same memory and
    rates. `bytes_per_token` is what each tier reads or moves: gpu (weights, KV and experts),
    link, cpu (experts it computes) and drive.
    """

    policy: str
    vram_bytes: float  # of each GPU
    slots: int  # per layer, mean; in all for scope global
    resident_layers: int | None  # of policy whole-layers: those on the GPU
    resident: float  # share of all experts on the GPU
    hit_ratio: float
    misses_per_token: float
    drive_reads_per_token: float
    bytes_per_token: Mapping[str, float] = field(hash=False)
    tok_s: float
    tok_s_low: float
    tok_s_high: float
    tok_s_limit: float
    bound: str
    share: Mapping[str, float] = field(hash=False)
    step_s: float


@dataclass(frozen=True)
class OffloadPlan(Result):
    """All rows, fastest first; `tok_s`, `bound`, `share`, `memory` are those of the first.

    `assumptions` says in sentences what the numbers rest on; `rates` has each rate with its band
    and source. The band of `tok_s` has all rates at the slow end, or all at the fast one.
    """

    model: str
    hardware: str
    trace_model: str
    transfer: str | None
    precision: str
    phase: str
    scope: Scope
    contract: str
    serve: Serve
    policy: str
    slots: int
    tok_s: float
    tok_s_low: float
    tok_s_high: float
    tok_s_limit: float
    provenance: Provenance
    bound: str
    share: Mapping[str, float] = field(hash=False)
    gib_gain_tok_s: float  # with one GiB more on each GPU
    gib_kv_tokens: int  # what that GiB holds of KV instead
    memory: OffloadMemory
    context_tokens: int
    tokens: int  # judged
    steps: int  # judged
    fit_steps: int  # before them
    sequences: float  # requests of a step, mean: `tok_s` is of all of them together
    rows: list[OffloadRow]
    rates: Rates
    assumptions: list[str]
    moe_layers: tuple[int, ...]  # native indices
    traffic: Traffic = field(repr=False, metadata=NOT_JSON)  # of the first row, as are these
    work: DecodeWork = field(repr=False, metadata=NOT_JSON)
    service: Service = field(repr=False, metadata=NOT_JSON)
