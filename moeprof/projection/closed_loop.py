"""Steady serving at a fixed number of requests: time per output token, time to the first one.

Each request that ends is replaced at once, as published benchmarks do it. A step decodes all
running sequences, and prompts of new requests are computed beside them. As many requests come as
go, so while a request makes its output tokens, each of the others has one prompt computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.step.batch import Batch
from moeprof.projection.step.model import StepModel, by_operation
from moeprof.projection.step.terms import TERM_NAMES, TERMS, Phase

# Prompt tokens of a step: max_num_batched_tokens of vLLM and max_num_tokens of TensorRT-LLM for
# online serving (https://docs.vllm.ai/en/stable/configuration/optimization/).
CHUNK_TOKENS = 8192
# A benchmark of this kind sends so many requests a slot (InferenceX: 10 x concurrency), the first
# of which all arrive at once and wait for each other's prompts.
REQUESTS_PER_SLOT = 10

FIRST_TOKEN_TERMS = ("overhead", "prefill", "step", "first_wave", "bunched", "admission")

_DECODES = np.array([term.phase is Phase.DECODE for term in TERMS])
_ONCE_A_CHUNK = np.array([name in ("prefill_chunk", "prefill_read") for name in TERM_NAMES])


@dataclass(frozen=True)
class Traffic:
    """`concurrency` requests at a time, of `input_len` prompt and `output_len` generated tokens.

    The first `cached_len` prompt tokens stand in the cache already: a prefix that others shared.
    `draft_tokens` are proposed a step, of which `accepted` tokens a step result (1 without).
    """

    concurrency: int
    input_len: int
    output_len: int
    draft_tokens: int = 0
    accepted: float = 1.0
    cached_len: int = 0

    @property
    def computed_len(self) -> int:
        """Prompt tokens that are not in the cache."""
        return self.input_len - self.cached_len


def check_traffic(traffic: Traffic) -> None:
    """Raises InputError, naming the value, where it is out of range."""
    if traffic.concurrency < 1:
        raise InputError(f"concurrency is {traffic.concurrency}, it must be at least 1")
    for name in ("input_len", "output_len", "draft_tokens", "cached_len"):
        if getattr(traffic, name) < 0:
            raise InputError(f"{name} is {getattr(traffic, name)}, it must be at least 0")
    if traffic.cached_len and traffic.cached_len >= traffic.input_len:
        raise InputError(
            f"cached_len is {traffic.cached_len}, it must be below the {traffic.input_len} tokens "
            "of the prompt, whose last is always computed"
        )
    most = 1 + traffic.draft_tokens
    if not 1 <= traffic.accepted <= most:  # also refuses NaN
        raise InputError(
            f"accepted is {traffic.accepted}: a step with {traffic.draft_tokens} draft tokens "
            f"yields 1 to {most} tokens"
        )


@dataclass(frozen=True)
class ClosedLoop:
    """Seconds of steady serving, before bands. `running` are the sequences decoding at a time over
    all groups; the rest of the requests waits for memory."""

    running: float
    tpot_s: float
    ttft_amounts: NDArray[np.float64]  # one a term of `FIRST_TOKEN_TERMS`, seconds
    term_seconds: NDArray[np.float64]  # of `tpot_s`, one a term of the step

    @property
    def operations(self) -> Mapping[str, float]:
        """Seconds of one output token by operation."""
        return by_operation(self.term_seconds)


def token_amounts(
    amounts: NDArray[np.float64], traffic: Traffic, running: float, parallelism: Parallelism
) -> NDArray[np.float64]:
    """From a step's amounts with one whole prompt beside it to those of one output token.

    A prompt holds a token of another request up for one pipeline stage at a time. Data-parallel
    groups step together, so a prompt holds up all of them, but prompts of several groups share a
    step: taken halfway, dp^1/2 of them on average, between one after another and all at a time.
    """
    at_a_time = parallelism.pp * parallelism.dp**0.5
    prompts = max(0.0, running - 1) / traffic.output_len / at_a_time
    return np.where(
        _DECODES, amounts / traffic.accepted, prompt_amounts(amounts, traffic) * prompts
    )


def prompt_amounts(amounts: NDArray[np.float64], traffic: Traffic) -> NDArray[np.float64]:
    """From a step's amounts with one whole prompt beside it to those of the prompt in chunks."""
    chunks = ceil(traffic.computed_len / CHUNK_TOKENS)
    return np.where(_DECODES, 0.0, amounts * np.where(_ONCE_A_CHUNK, chunks, 1))


def steady_batch(traffic: Traffic, running: float, parallelism: Parallelism) -> Batch:
    """The step of one group, with one prompt beside its share of `running` sequences.

    Pipeline stages each have a share of the sequences in hand, and a token passes all of them.
    """
    return Batch(
        decode=running / parallelism.dp / parallelism.pp,
        context=traffic.input_len + traffic.output_len / 2,
        prefill=traffic.computed_len,
        prefill_context=traffic.cached_len,
        draft_tokens=traffic.draft_tokens,
    )


def closed_loop(model: StepModel, traffic: Traffic, limit: float | None) -> ClosedLoop:
    """Steady serving of `traffic`; `limit` is how many sequences the memory holds, if it does."""
    parallelism = model.deployment.parallelism
    running = running_of(traffic, limit)
    step = model.amounts(steady_batch(traffic, running, parallelism))
    return loop_of(model.constants, step, traffic, running, parallelism)


def running_of(traffic: Traffic, limit: float | None) -> float:
    """Requests that decode at a time."""
    return float(traffic.concurrency if limit is None else min(traffic.concurrency, limit))


def loop_of(
    constants: NDArray[np.float64],
    amounts: NDArray[np.float64],
    traffic: Traffic,
    running: float,
    parallelism: Parallelism,
) -> ClosedLoop:
    """The loop of steps with `amounts` (`steady_batch`) under `constants`, one a term."""
    token = constants * token_amounts(amounts, traffic, running, parallelism)
    prompt = constants * prompt_amounts(amounts, traffic)
    waits = _first_token_waits(token, prompt, traffic, running, parallelism)
    return ClosedLoop(running, float(token.sum()), waits, token)


def _first_token_waits(
    token: NDArray[np.float64],
    prompt: NDArray[np.float64],
    traffic: Traffic,
    running: float,
    parallelism: Parallelism,
) -> NDArray[np.float64]:
    """What a first token waits for, in seconds, one a term of `FIRST_TOKEN_TERMS`.

    The engine's own overhead (in ms), the prompt, a step that is under way; of the requests that
    all arrived first half of the others' prompts; the prompts of others that end together, more
    the busier prompts keep the engine; and the end of others where memory is full.
    """
    whole, each = float(prompt.sum()), float(token.sum())
    marginal = whole - float(prompt[_ONCE_A_CHUNK].sum())
    busy = float(token[~_DECODES].sum()) / each
    waiting = max(0.0, traffic.concurrency / running - 1)
    return np.array(
        [
            1e-3,
            whole,
            float(token[_DECODES].sum()) * traffic.accepted,
            (running - 1) / 2 * marginal / REQUESTS_PER_SLOT,
            busy * whole * (running / parallelism.dp) ** 0.5,
            waiting * traffic.output_len * each * (1 - 1 / REQUESTS_PER_SLOT),
        ]
    )
