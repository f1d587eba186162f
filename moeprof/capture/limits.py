"""How much of the traffic a recording takes: up to a size, for a time, of whom, how closely."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.capture.sampling import RequestSampler
from moeprof.errors import InputError
from moeprof.trace.limits import MIN_BYTES


@dataclass(frozen=True)
class Limits:
    """What bounds a recording. Raises InputError on values that cannot be."""

    max_bytes: int | None = None  # the trace never takes more of the disk
    rotate: bool = False  # at that size the oldest rows make room, instead of the newest lost
    duration_s: float | None = None  # from the start of the recording
    sample_requests: float | None = None  # probability with which a request is kept
    seed: int = 0
    aggregate_steps: int | None = None  # count tokens per so many steps, and keep nothing else

    def __post_init__(self) -> None:
        if self.rotate and self.max_bytes is None:
            raise InputError("rotate needs a size to stay below: give max_bytes (--max-size)")
        if self.max_bytes is not None and not self.max_bytes >= MIN_BYTES:
            raise InputError(
                f"max_bytes is {self.max_bytes:,}, a trace takes at least {MIN_BYTES:,} (1MiB)"
            )
        if self.duration_s is not None and not 0 < self.duration_s < float("inf"):
            raise InputError(f"duration_s is {self.duration_s}, it must be above 0")
        if self.sample_requests is not None and not 0 < self.sample_requests <= 1:
            raise InputError(
                f"sample_requests is {self.sample_requests}, it must lie above 0 and be at most 1"
            )
        if self.aggregate_steps is not None and not 1 <= self.aggregate_steps < 2**63:
            raise InputError(f"aggregate_steps is {self.aggregate_steps}, it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}, it must lie between 0 and 2^63")

    @property
    def sampler(self) -> RequestSampler | None:
        """Who chooses requests; None if all are to be recorded."""
        if self.sample_requests is None or self.sample_requests == 1:
            return None
        return RequestSampler(self.sample_requests, self.seed)

    @property
    def sampling(self) -> dict[str, float] | None:
        """What the trace says of it."""
        sampler = self.sampler
        return None if sampler is None else {"rate": sampler.rate, "seed": sampler.seed}
