"""Steady serving at a fixed number of requests: time per output token, time to the first one.

Each request that ends is replaced at once, as published benchmarks do it. A step decodes all
running sequences, and prompts of new requests are computed beside them. As many requests come as
go, so the time of an output token holds requests / output tokens prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

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

    `draft_tokens` are proposed a step, of which `accepted` tokens a step result (1 without).
    """

    concurrency: int
    input_len: int
    output_len: int
    draft_tokens: int = 0
    accepted: float = 1.0


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
    amounts: NDArray[np.float64], traffic: Traffic, running: float, stages: int = 1
) -> NDArray[np.float64]:
    """From a step's amounts with one whole prompt beside it to those of one output token.

    A prompt holds a token up for one of `stages` pipeline stages at a time.
    """
    chunks = ceil(traffic.input_len / CHUNK_TOKENS)
    prompts = running / traffic.output_len / stages
    prefill = amounts * np.where(_ONCE_A_CHUNK, chunks, 1) * prompts
    return np.where(_DECODES, amounts / traffic.accepted, prefill)


def steady_batch(traffic: Traffic, running: float, parallelism: Parallelism) -> Batch:
    """The step of one group, with one prompt beside its share of `running` sequences.

    Pipeline stages each have a share of the sequences in hand, and a token passes all of them.
    """
    return Batch(
        decode=running / parallelism.dp / parallelism.pp,
        context=traffic.input_len + traffic.output_len / 2,
        prefill=traffic.input_len,
        prefill_context=0,
        draft_tokens=traffic.draft_tokens,
    )


def closed_loop(model: StepModel, traffic: Traffic, limit: float | None) -> ClosedLoop:
    """Steady serving of `traffic`; `limit` is how many sequences the memory holds, if it does."""
    parallelism = model.deployment.parallelism
    running = float(traffic.concurrency if limit is None else min(traffic.concurrency, limit))
    step = model.work.amounts(steady_batch(traffic, running, parallelism), model.loads)
    seconds = model.constants * token_amounts(step, traffic, running, parallelism.pp)
    amounts = first_token_amounts(seconds, traffic, running, parallelism)
    return ClosedLoop(running, float(seconds.sum()), amounts, seconds)


def first_token_amounts(
    seconds: NDArray[np.float64], traffic: Traffic, running: float, parallelism: Parallelism
) -> NDArray[np.float64]:
    """What a first token waits for, in seconds, one a term of `FIRST_TOKEN_TERMS`.

    The engine's own overhead (in ms), the prompt, a step that is under way; of the requests that
    all arrived first half of the others' prompts; the prompts of others that end together, more
    the busier prompts keep the engine; and the end of others where memory is full.
    """
    token, prompts = float(seconds.sum()), running / traffic.output_len / parallelism.pp
    prefill = float(seconds[~_DECODES].sum()) / prompts
    marginal = prefill - float(seconds[_ONCE_A_CHUNK].sum()) / prompts
    busy = prefill * prompts / token
    waiting = max(0.0, traffic.concurrency / running - 1)
    return np.array(
        [
            1e-3,
            prefill,
            float(seconds[_DECODES].sum()) * traffic.accepted,
            (running - 1) / 2 * marginal / REQUESTS_PER_SLOT,
            busy * prefill * (running / parallelism.dp) ** 0.5,
            waiting * traffic.output_len * token * (1 - 1 / REQUESTS_PER_SLOT),
        ]
    )
