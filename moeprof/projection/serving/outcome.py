"""What users of a simulated deployment see: latencies, rates, and how full it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.result import NOT_JSON, Result

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Floats = NDArray[np.float64]
Spread = Mapping[str, float | None]  # None where there is nothing to take it of


@dataclass(frozen=True)
class Targets(Result):
    """What a request must keep to count as good; None: anything will do.

    TPOT is (end - first token) / (output tokens - 1), as in vLLM's `benchmark_serving.py`, and a
    request of one token has none.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InputError(f"the target {name} is {value}, it must be above 0")

    def met(self, ttft_s: Floats, tpot_s: Floats) -> NDArray[np.bool_]:
        """Which requests keep both, [request]; a TPOT of NaN keeps any."""
        ttft = np.inf if self.ttft_ms is None else self.ttft_ms / 1e3
        tpot = np.inf if self.tpot_ms is None else self.tpot_ms / 1e3
        kept: NDArray[np.bool_] = (ttft_s <= ttft) & ~(tpot_s > tpot)
        return kept


@dataclass(frozen=True)
class ServingOutcome(Result):
    """A whole simulation, from the first arrival at 0 s to the last token at `duration_s`.

    Each latency maps mean, p50, p90 and p99 to milliseconds: `ttft_ms` and `e2e_ms` over requests,
    `tpot_ms` over those of more than one token, `itl_ms` over all gaps between tokens. Rates are
    over `duration_s` and of the whole deployment. `goodput` is requests a second that meet
    `targets`, `good_share` their share. `queue_mean`, `running_mean` and `kv_tokens_mean` are over
    time; the KV of the fullest group at most is `kv_tokens_peak`, `kv_share_peak` of its capacity.
    The arrays are [request] in order of arrival, in seconds.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    duration_s: float
    ttft_ms: Spread = field(hash=False)
    tpot_ms: Spread = field(hash=False)
    itl_ms: Spread = field(hash=False)
    e2e_ms: Spread = field(hash=False)
    output_tok_s: float
    total_tok_s: float
    requests_per_s: float
    goodput: float  # requests/s
    good_share: float
    targets: Targets
    queue_mean: float
    queue_peak: int
    running_mean: float
    kv_tokens_mean: float
    kv_tokens_peak: float
    kv_share_peak: float | None  # None where KV has no limit
    preemptions: int
    steps: int
    busy_share: float
    arrival_s: Floats = field(metadata=NOT_JSON, hash=False, repr=False)
    first_token_s: Floats = field(metadata=NOT_JSON, hash=False, repr=False)
    finish_s: Floats = field(metadata=NOT_JSON, hash=False, repr=False)


def spread_ms(seconds: Floats) -> Spread:
    """Mean and percentiles of `seconds` in milliseconds, as NumPy interpolates them."""
    if not len(seconds):
        return dict.fromkeys(["mean", *_QUANTILES])
    levels = np.quantile(seconds, list(_QUANTILES.values())) * 1e3
    return {
        "mean": float(seconds.mean() * 1e3),
        **dict(zip(_QUANTILES, levels.tolist(), strict=True)),
    }


def weighted_spread_ms(seconds: Floats, counts: NDArray[np.int64]) -> Spread:
    """As `spread_ms`, `counts` of each value; a percentile is the least value that reaches it."""
    if not counts.sum():
        return dict.fromkeys(["mean", *_QUANTILES])
    order = np.argsort(seconds)
    reached = counts[order].cumsum()
    places = np.searchsorted(reached, np.array(list(_QUANTILES.values())) * reached[-1])
    levels = seconds[order][places] * 1e3
    mean = float(seconds @ counts / reached[-1] * 1e3)
    return {"mean": mean, **dict(zip(_QUANTILES, levels.tolist(), strict=True))}


def tpot_seconds(first_s: Floats, finish_s: Floats, output_len: Sequence[int]) -> Floats:
    """TPOT, [request]; NaN for a request of one token."""
    after = np.array(output_len, float) - 1
    with np.errstate(invalid="ignore"):
        seconds: Floats = np.where(after > 0, finish_s - first_s, np.nan) / after
    return seconds
