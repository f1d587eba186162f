"""Requests in, latencies out: one serving engine under a load."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from moeprof.errors import InputError
from moeprof.projection.serving.arrivals import Arrivals
from moeprof.projection.serving.engine_policy import EnginePolicy, engine_policy
from moeprof.projection.serving.group import Group
from moeprof.projection.serving.kv_pool import KVPool
from moeprof.projection.serving.outcome import (
    ServingOutcome,
    Targets,
    spread_ms,
    tpot_seconds,
    weighted_spread_ms,
)
from moeprof.projection.serving.requests import Request
from moeprof.projection.serving.step_grid import StepGrid, StepSeconds
from moeprof.projection.serving.timeline import Timeline, serve


def simulate_serving(
    step_seconds: StepSeconds,
    requests: SequenceOf[Request],
    *,
    engine: str | EnginePolicy = "vllm",
    concurrency: int | None = None,
    kv_tokens: int | None = None,
    dp: int = 1,
    lock_step: bool = True,
    accepted_tokens: float = 1.0,
    draft_tokens: int = 0,
    delay_s: float = 0.0,
    targets: Targets | None = None,
    longest_run: int | None = None,
) -> ServingOutcome:
    """Serve `requests` with an engine whose steps last `step_seconds(batch)`.

    Closed loop with `concurrency` requests in flight over all `dp` groups; open loop, each request
    at its own `arrival_s`, if None. `kv_tokens` is what one group's KV cache holds; None for no
    limit. Requests go to the groups in turn, and `step_seconds` is that of one group whose peers
    do as much; with `lock_step` each step lasts as long as that of the busiest group, else every
    group keeps its own clock and, in the closed loop, its share of the concurrency.
    Speculative decoding computes 1 + `draft_tokens` tokens a sequence and step, and
    `accepted_tokens` of them come out on average. Every request enters the engine `delay_s` after
    it arrived, which is part of its TTFT. Deterministic. Raises InputError for a value out of range
    and for a request that the KV cache can never hold.
    """
    policy = engine_policy(engine) if isinstance(engine, str) else engine
    _check(requests, dp, accepted_tokens, draft_tokens)
    loops = _loops(requests, concurrency, dp, lock_step)
    if not policy.chunked:
        in_flight = len(requests) if concurrency is None else concurrency
        policy = _whole_prompts(policy, requests, -(-in_flight // dp) * (1 + draft_tokens))
    grid = StepGrid(step_seconds, draft_tokens)
    told = []
    for own_requests, share, groups in loops:
        own = [Group(policy, grid, kv_tokens, accepted_tokens, draft_tokens) for _ in range(groups)]
        _check_room(own_requests, own[0].pool, kv_tokens)
        told.append(serve(own, Arrivals(own_requests, share, delay_s), longest_run))
    return _outcome(told, targets or Targets(), own[0].pool)


Loop = tuple[SequenceOf[Request], int | None, int]


def _loops(
    requests: SequenceOf[Request], concurrency: int | None, dp: int, lock_step: bool
) -> list[Loop]:
    """(requests, concurrency, groups) of each clock: one, or as many as groups that get work."""
    if lock_step or dp == 1:
        return [(requests, concurrency, dp)]
    if concurrency is None:
        busy = min(dp, len(requests))
        return [(requests[i::busy], None, 1) for i in range(busy)]
    busy = min(dp, concurrency, len(requests))
    return [
        (requests[i::busy], concurrency // busy + (i < concurrency % busy), 1) for i in range(busy)
    ]


def _whole_prompts(
    policy: EnginePolicy, requests: SequenceOf[Request], decode_tokens: int
) -> EnginePolicy:
    """A budget that holds the longest prompt beside what decodes, as users of such engines set."""
    longest = max(request.input_len - request.cached_len for request in requests)
    beside = min(decode_tokens, policy.max_sequences)
    return policy.with_limits(max(policy.max_step_tokens, longest + beside))


def _check(
    requests: SequenceOf[Request], dp: int, accepted_tokens: float, draft_tokens: int
) -> None:
    if not requests:
        raise InputError("no requests to serve")
    if dp < 1 or draft_tokens < 0:
        raise InputError(f"dp {dp} must be at least 1 and draft tokens {draft_tokens} at least 0")
    if not 1 <= accepted_tokens <= 1 + draft_tokens:
        raise InputError(
            f"{accepted_tokens} tokens a step: between 1 and {1 + draft_tokens}, one more than "
            "the draft tokens"
        )


def _check_room(requests: SequenceOf[Request], pool: KVPool, kv_tokens: int | None) -> None:
    longest = max(requests, key=lambda r: r.input_len + r.output_len)
    if not pool.holds(longest.input_len + longest.output_len):
        raise InputError(
            f"a request of {longest.input_len} + {longest.output_len} tokens does not fit into a "
            f"KV cache of {kv_tokens} tokens: shorten it (--max-model-len) or give it more memory"
        )


def _outcome(loops: SequenceOf[Timeline], targets: Targets, pool: KVPool) -> ServingOutcome:
    """The loops run beside each other, so rates are over the longest."""
    served = sorted(
        (sequence for told in loops for sequence in told.sequences),
        key=lambda s: (s.arrival_s, s.number),
    )
    arrival, first, finish = (
        np.array([getattr(sequence, name) for sequence in served])
        for name in ("arrival_s", "first_token_s", "finish_s")
    )
    outputs = [sequence.request.output_len for sequence in served]
    tpot = tpot_seconds(first, finish, outputs)
    good = targets.met(first - arrival, tpot)
    seconds = max(told.end_s for told in loops)
    inputs = sum(sequence.request.input_len for sequence in served)
    peak = max(told.kv_most for told in loops)
    gaps = [told.gaps() for told in loops]
    return ServingOutcome(
        requests=len(served),
        input_tokens=inputs,
        output_tokens=sum(outputs),
        duration_s=seconds,
        ttft_ms=spread_ms(first - arrival),
        tpot_ms=spread_ms(tpot[~np.isnan(tpot)]),
        itl_ms=weighted_spread_ms(*(np.concatenate(part) for part in zip(*gaps, strict=True))),
        e2e_ms=spread_ms(finish - arrival),
        output_tok_s=sum(outputs) / seconds,
        total_tok_s=(inputs + sum(outputs)) / seconds,
        requests_per_s=len(served) / seconds,
        goodput=float(good.sum()) / seconds,
        good_share=float(good.mean()),
        targets=targets,
        queue_mean=sum(told.queue_s for told in loops) / seconds,
        queue_peak=max(told.queue_most for told in loops),
        running_mean=sum(told.running_s for told in loops) / seconds,
        kv_tokens_mean=sum(told.kv_token_s for told in loops) / seconds,
        kv_tokens_peak=peak,
        kv_share_peak=pool.share(peak),
        preemptions=sum(sequence.preemptions for sequence in served),
        steps=sum(told.steps for told in loops),
        busy_share=max(told.busy_s for told in loops) / seconds,
        arrival_s=arrival,
        first_token_s=first,
        finish_s=finish,
    )
