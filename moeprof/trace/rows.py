"""What one recorded token is, and what one request is: the units that writers take."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError, TraceError


class Phase(IntEnum):
    """Prefill: position < prompt length. Decode: the rest. Unknown is null in the file."""

    UNKNOWN = -1
    PREFILL = 0
    DECODE = 1

    @classmethod
    def parse(cls, name: str) -> Phase | None:
        """The phase called `name`; None, no restriction, for 'all'. Raises InputError."""
        phases = {"all": None, "prefill": cls.PREFILL, "decode": cls.DECODE}
        if name not in phases:
            raise InputError(f"phase '{name}' is not one of {', '.join(phases)}")
        return phases[name]


@dataclass(frozen=True)
class TokenRows:
    """Consecutive tokens in engine order. T tokens, L recorded MoE layers, k experts a token.

    `phase` is None where the source does not say. `recorded` is False where a layer was not
    recorded for a token (None: everything was); the ids of such a place mean nothing.
    """

    step: NDArray[np.int64]  # [T] forward pass of the engine
    request: NDArray[np.int32]  # [T] index into the requests
    position: NDArray[np.int32]  # [T] place in the request's own sequence, from 0
    phase: NDArray[np.int8] | None  # [T] of Phase, -1 where unknown
    experts: NDArray[np.unsignedinteger]  # [T, L, k] logical expert ids
    recorded: NDArray[np.bool_] | None = None  # [T, L]
    weights: NDArray[np.float16] | None = None  # [T, L, k] gate weights
    token_id: NDArray[np.int32] | None = None  # [T]
    # [T, L] selection score of the last chosen expert less that of the first not chosen; NaN where
    # it is not known
    margins: NDArray[np.float16] | None = None
    # [T, L-1, k] what the router of the next recorded layer makes of this layer's hidden state
    next_experts: NDArray[np.unsignedinteger] | None = None
    next_weights: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        if self.experts.ndim != 3:
            raise TraceError(f"experts must be [tokens, layers, k], not {self.experts.shape}")
        tokens, layers, k = self.experts.shape
        expected = {
            "step": (tokens,),
            "request": (tokens,),
            "position": (tokens,),
            "phase": (tokens,),
            "token_id": (tokens,),
            "recorded": (tokens, layers),
            "weights": (tokens, layers, k),
            "margins": (tokens, layers),
            "next_experts": (tokens, layers - 1, k),
            "next_weights": (tokens, layers - 1, k),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise TraceError(f"{name} has shape {array.shape}, expected {shape}")

        if (self.next_experts is None) != (self.next_weights is None):
            raise TraceError("next_experts and next_weights must be given together")

    def __len__(self) -> int:
        return int(self.experts.shape[0])

    def select(self, index: NDArray[np.integer] | slice) -> TokenRows:
        """The rows at `index`, in its order."""
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{n: array[index] for n, array in given if array is not None})


@dataclass(frozen=True)
class Request:
    """One request. Writing the same `index` again replaces what was known of it."""

    index: int
    label: str | None = None  # domain or workload, as the user names it
    arrival_s: float | None = None  # seconds since the clock base of the trace
    prompt_tokens: int | None = None
    output_tokens: int | None = None  # tokens generated, the last of which is never routed
    name: str | None = None  # the engine's id or a hash of it, as `request_names` of the trace says


@dataclass(frozen=True)
class TelemetrySample:
    """What NVML said of one device at one moment; None where it would not say."""

    time_s: float  # since the clock base of the trace
    device: int
    gpu_utilization: float | None = None  # percent of time a kernel ran
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
