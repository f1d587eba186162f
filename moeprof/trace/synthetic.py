"""Seeded synthetic routing: skewed, sticky and domain-dependent enough to test against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.rows import Phase, Request, TokenRows
from moeprof.trace.schema import expert_dtype


def synthesize_rows(
    model: MoEModel,
    tokens: int,
    *,
    seed: int = 0,
    requests: int = 4,
    labels: Sequence[str] = ("a", "b"),
    skew: float = 0.7,
    repeat: float = 0.3,
    prefill: float = 0.5,
) -> tuple[TokenRows, list[Request]]:
    """`tokens` rows of made-up routing for `model`, one request after the other.

    Experts are drawn without replacement from log-normal popularities of width `skew`, a set of
    them for each label and layer (Gumbel top-k); with probability `repeat` a token takes the set
    of the token before it. The first `prefill` of each request is one prefill step, each later
    token a decode step. Same arguments, same rows. Raises InputError on values out of range.
    """
    if tokens < 1 or requests < 1 or not 0 <= repeat <= 1 or not 0 <= prefill <= 1 or skew < 0:
        raise InputError(
            "synthetic routing takes tokens and requests >= 1, skew >= 0, "
            "repeat and prefill between 0 and 1"
        )
    rng = np.random.default_rng(seed)
    requests = min(requests, tokens)
    request = np.sort(np.arange(tokens, dtype=np.int32) % requests)
    starts = np.searchsorted(request, np.arange(requests))
    lengths = np.diff(starts, append=tokens)
    position = (np.arange(tokens) - starts[request]).astype(np.int32)
    prompts = np.maximum(1, np.round(lengths * prefill)).astype(np.int32)
    phase = np.where(position < prompts[request], Phase.PREFILL, Phase.DECODE).astype(np.int8)
    starts_step = (phase == Phase.DECODE) | (position == 0)
    rows = TokenRows(
        step=np.cumsum(starts_step).astype(np.int64) - 1,
        request=request,
        position=position,
        phase=phase,
        experts=_draw_experts(rng, model, request % len(labels), position, skew, repeat),
    )
    described = [
        Request(
            index=index,
            label=labels[index % len(labels)],
            arrival_s=float(starts[index]),
            prompt_tokens=int(prompts[index]),
            output_tokens=int(lengths[index] - prompts[index]) + 1,
        )
        for index in range(requests)
    ]
    return rows, described


def _draw_experts(
    rng: np.random.Generator,
    model: MoEModel,
    domain: NDArray[np.int32],
    position: NDArray[np.int32],
    skew: float,
    repeat: float,
) -> NDArray[np.unsignedinteger]:
    tokens, layers = len(domain), len(model.moe_layers)
    chosen = np.empty((tokens, layers, model.top_k), expert_dtype(model.experts))
    for layer in range(layers):
        popularity = rng.normal(0, skew, (int(domain.max()) + 1, model.experts))
        scores = popularity[domain] + rng.gumbel(size=(tokens, model.experts))
        drawn = np.argpartition(scores, -model.top_k, axis=1)[:, -model.top_k :]
        fresh = (rng.random(tokens) >= repeat) | (position == 0)
        source = np.maximum.accumulate(np.where(fresh, np.arange(tokens), 0))
        chosen[:, layer] = drawn[source]
    return chosen
