"""What a first token takes beside the steps of the engine, from the law of the first token.

That law (`moeprof.projection.closed_loop`) was fitted to published times to the first token. Two of
its terms happen outside of steps or between them: a constant (HTTP, tokenizer, scheduling) and a
few steps' time, of which the simulation has the wait for the step under way and not the rest. All
its other terms are queueing, which the simulation does by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from moeprof.projection.closed_loop import FIRST_TOKEN_TERMS
from moeprof.projection.laws import Laws
from moeprof.projection.serving.load import Load
from moeprof.projection.step.batch import Batch
from moeprof.projection.step.model import StepModel

_ROUNDS = 20


def first_token_delay(
    laws: Laws,
    groups: Mapping[str, str],
    steps: StepModel,
    load: Load,
    running: float,
    draft_tokens: int = 0,
) -> float:
    """Seconds between arrival and entering the engine, with `running` sequences in each group."""
    law = dict(zip(FIRST_TOKEN_TERMS, laws.first_token.constants(groups).tolist(), strict=True))
    step_s = _decode_seconds(steps, load, running, draft_tokens)
    return 1e-3 * float(law["overhead"]) + max(0.0, float(law["step"]) - 1) * step_s


def usual_running(
    load: Load,
    steps: StepModel,
    most: float,
    dp: int,
    draft_tokens: int = 0,
    accepted: float = 1.0,
) -> float:
    """Sequences that decode at a time in each of `dp` groups, `most` at most; roughly.

    In a closed loop its concurrency; in an open one arrivals x output tokens x time of a step,
    which depends on it, so by repeated substitution.
    """
    if load.concurrency is not None:
        return max(1.0, min(load.concurrency / dp, most))
    outputs = sum(r.output_len for r in load.requests) / dp / accepted
    span = max(request.arrival_s for request in load.requests)
    running = 1.0
    for _ in range(_ROUNDS):
        busy = outputs * _decode_seconds(steps, load, running, draft_tokens)
        running = max(1.0, min(busy / span if span else most, most))
    return running


def mean_tokens(load: Load, output_share: float) -> float:
    """Mean tokens of a request with that share of its output."""
    tokens = sum(r.input_len + output_share * r.output_len for r in load.requests)
    return tokens / len(load.requests)


def _decode_seconds(steps: StepModel, load: Load, running: float, draft_tokens: int) -> float:
    batch = Batch(max(1, round(running)), mean_tokens(load, 0.5), 0, 0.0, draft_tokens)
    return steps.phase_seconds(batch)[0]
