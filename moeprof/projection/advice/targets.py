"""What is asked of a deployment: lengths of requests, and how long users may wait."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moeprof.errors import InputError
from moeprof.model import MoEModel, load_model
from moeprof.projection.closed_loop import Traffic, check_traffic
from moeprof.projection.serving import workload
from moeprof.result import Result

_DRAWN = 20_000  # requests whose mean lengths stand for a workload


@dataclass(frozen=True)
class LatencyTargets(Result):
    """The longest time per output token and to the first one, in milliseconds; None: any.

    With `sure` the upper end of the 80 % band has to meet them, not the middle alone.
    """

    tpot_ms: float | None = None
    ttft_ms: float | None = None
    sure: bool = False

    def __post_init__(self) -> None:
        for name in ("tpot_ms", "ttft_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):  # also refuses NaN
                raise InputError(f"{name} is {value}, a target is a time above 0 ms")

    def miss(self, tpot_ms: float, ttft_ms: float) -> float:
        """The larger of the two times over its target: at most 1 where both are met."""
        times = ((tpot_ms, self.tpot_ms), (ttft_ms, self.ttft_ms))
        return max((time / target for time, target in times if target is not None), default=0.0)


def plan_traffic(
    model: MoEModel | str | Path,
    *,
    workload_name: str | None = None,
    input_len: int | None = None,
    output_len: int | None = None,
    cached_len: int | None = None,
    draft_tokens: int = 0,
    accepted: float = 1.0,
    seed: int = 0,
) -> Traffic:
    """One request at a time with the mean lengths of a workload, or the lengths as given.

    A length that is given replaces the workload's; without either a prompt has 4,096 tokens and an
    answer 1,024. Prompts are cut to what the model takes. Raises InputError for an unknown
    workload and lengths that make no request.
    """
    model, lengths = load_model(model), (4096, 1024, 0)
    if workload_name is not None:
        lengths = _means(workload_name, model.max_positions or None, seed)
    given = (input_len, output_len, cached_len)
    prompt, answer, cached = (
        mean if asked is None else asked for asked, mean in zip(given, lengths, strict=True)
    )
    if prompt < 1 or answer < 1:
        raise InputError(f"a request of {prompt} prompt and {answer} generated tokens is none")
    longest = model.max_positions
    if longest and prompt + answer > longest:
        raise InputError(f"{prompt} + {answer} tokens: {model.name} takes {longest:,} at most")
    traffic = Traffic(1, prompt, answer, draft_tokens, accepted, min(cached, prompt - 1))
    check_traffic(traffic)
    return traffic


def longest_request(model: MoEModel, workload_name: str | None) -> int | None:
    """Tokens of the longest request of a workload, cut to what the model takes; None without."""
    if workload_name is None:
        return None
    found = workload(workload_name)
    longest = round(found.input_tokens.values[-1] + found.output_tokens.values[-1])
    return min(longest, model.max_positions) if model.max_positions else longest


def _means(name: str, longest: int | None, seed: int) -> tuple[int, int, int]:
    """(prompt, answer, cached) tokens of the mean request."""
    drawn = workload(name).requests(_DRAWN, seed=seed, longest=longest)
    rows = [(each.input_len, each.output_len, each.cached_len) for each in drawn]
    prompt, answer, cached = np.mean(rows, axis=0).round().astype(int).tolist()
    return prompt, answer, cached
