"""Synthetic routing, drawn and written as a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.model import MoEModel, load_model
from moeprof.result import Result
from moeprof.synth.fit import fit_routing
from moeprof.synth.judge import FitJudgement, judge_fit
from moeprof.synth.routing import RoutingModel
from moeprof.synth.schedule import Schedule, Traffic, repeated_schedule, served_schedule
from moeprof.synth.targets import PROFILES, SAMPLE_TOKENS, RoutingTargets, routing_for
from moeprof.trace import Phase, TokenRows, Trace, TraceWriter, open_trace
from moeprof.trace.folder import drafted, refuse_existing
from moeprof.trace.schema import MANIFEST
from moeprof.trace.streams import COMPACT_ROWS

ENGINE = "moeprof synth"


@dataclass(frozen=True)
class SynthResult(Result):
    """What was written. `sha256` is of the manifest, which holds the checksums of every file."""

    path: str
    model: str
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    requests: int
    layers: int
    seed: int
    sha256: str
    fit: FitJudgement | None  # against the recording that it is like


def synthesize_trace(
    model: str | Path | MoEModel,
    output: str | Path,
    *,
    tokens: int,
    seed: int = 0,
    targets: RoutingTargets | None = None,
    traffic: Traffic | None = None,
    like: Trace | None = None,
    force: bool = False,
) -> SynthResult:
    """Write `tokens` tokens of synthetic routing for `model` to the folder `output`.

    By `targets` and `traffic`, or `like` a recording: its requests over and over, with other
    experts that show the same imbalance, locality and ties; the fit is then judged. Same arguments,
    same bytes. The ids are in memory as a whole (228 bytes a token for MiniMax-M3). Raises
    InputError on targets out of reach, or where the recording is of another shape.
    """
    model = load_model(model)
    if tokens < 1 or seed < 0:
        raise InputError(f"tokens = {tokens}, seed = {seed}: at least 1 and 0 are needed")
    if not model.moe_layers:
        raise InputError(f"{model.name} is dense: it has no experts to route to")
    refuse_existing(Path(output), force)
    if like is None:
        routing, schedule = _by_targets(
            model, tokens, seed, targets or RoutingTargets(), traffic or Traffic()
        )
        layers = model.moe_layers
    elif targets is not None or traffic is not None:
        raise InputError("a trace like a recording takes its targets and traffic from it")
    else:
        _refuse_other_shape(model, like)
        fitted = fit_routing(like, seed=seed)
        routing, schedule = fitted.routing, repeated_schedule(fitted.schedule, tokens)
        layers = fitted.layers
    experts = routing.draw(schedule, seed)
    with drafted(Path(output), force) as draft:
        _write(draft, model, layers, schedule, experts)
    return SynthResult(
        path=str(output),
        model=model.name,
        tokens=tokens,
        prefill_tokens=int((schedule.phase == Phase.PREFILL).sum()),
        decode_tokens=int((schedule.phase == Phase.DECODE).sum()),
        requests=len(schedule.requests),
        layers=len(layers),
        seed=seed,
        sha256=hashlib.sha256((Path(output) / MANIFEST).read_bytes()).hexdigest(),
        fit=None if like is None else judge_fit(like, open_trace(output)),
    )


def _by_targets(
    model: MoEModel, tokens: int, seed: int, targets: RoutingTargets, traffic: Traffic
) -> tuple[RoutingModel, Schedule]:
    rng = np.random.default_rng([seed, 0])
    enough = max(tokens, SAMPLE_TOKENS)
    schedule = served_schedule(traffic, enough, targets.labels, PROFILES, rng)
    return routing_for(targets, model, schedule, seed), schedule.first(tokens)


def _refuse_other_shape(model: MoEModel, like: Trace) -> None:
    shape, other = (model.experts, model.top_k), (like.experts_per_layer, like.top_k)
    if shape != other or not set(like.layers) <= set(model.moe_layers):
        raise InputError(
            f"{like} has top-{other[1]} of {other[0]} experts in {len(like.layers)} layers, "
            f"{model.name} top-{shape[1]} of {shape[0]} in {len(model.moe_layers)}: "
            "a trace can only be like one of its own model"
        )


def _write(
    path: Path,
    model: MoEModel,
    layers: tuple[int, ...],
    schedule: Schedule,
    experts: NDArray[np.unsignedinteger],
) -> None:
    """The trace on disk. Its clock starts at 0 and batches are whole, so bytes depend on no clock.

    Requests come first: nothing is then written until a whole batch of tokens is there.
    """
    with TraceWriter(
        path,
        model,
        layers=layers,
        engine=ENGINE,
        clock_base=0.0,
        rank_ordered=False,
        clock=lambda: 0.0,
    ) as writer:
        for request in schedule.requests:
            writer.put_request(request)
        for part in _parts(schedule, experts):
            writer.write(part)


def _parts(schedule: Schedule, experts: NDArray[np.unsignedinteger]) -> Iterator[TokenRows]:
    for start in range(0, len(schedule), COMPACT_ROWS):
        part = slice(start, start + COMPACT_ROWS)
        yield TokenRows(
            step=schedule.step[part],
            request=schedule.request[part],
            position=schedule.position[part],
            phase=schedule.phase[part],
            experts=experts[part],
        )
