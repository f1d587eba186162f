"""Fitting synthetic routing to a recording."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.synth.coupling import match_coupling
from moeprof.synth.recency import match_recency
from moeprof.synth.routing import RoutingModel
from moeprof.synth.schedule import Schedule, Spans, recorded_schedule
from moeprof.trace import Trace

_CALIBRATION_TOKENS = 32_768
_PRIOR_TOKENS = 1.0  # of the whole recording, in every profile


@dataclass(frozen=True)
class FittedRouting:
    """What was learned, and the requests that it was learned from."""

    routing: RoutingModel
    schedule: Schedule
    layers: tuple[int, ...]  # native indices


def fit_routing(trace: Trace, *, seed: int = 0) -> FittedRouting:
    """The synthetic routing that behaves like `trace`.

    Popularities are those of each request and phase, almost as recorded (a token's worth of the
    whole is mixed in), so what is drawn is like these requests and not like others; recency and
    the tie between layers are fitted by drawing. Rows that lack a layer are left out. Raises
    InputError where none has every layer.
    """
    if trace.counts_only:
        raise InputError(f"{trace}: holds counts alone, and a fit needs the order of tokens")
    whole = np.ones(trace.tokens, bool)
    for layer in trace.layers:
        whole &= trace.recorded(layer)
    rows = np.flatnonzero(whole)
    if not len(rows):
        raise InputError(f"{trace}: no token was recorded in every layer, so nothing can be fitted")
    schedule = recorded_schedule(trace, rows)
    seen = np.stack([_ids(trace, layer, rows) for layer in trace.layers], axis=1)
    spans = schedule.spans()
    share = profile_shares(spans, seen, trace.experts_per_layer)
    gain = np.ones((len(trace.layers), 2, trace.experts_per_layer + 1))
    routing = RoutingModel(share, gain, trace.top_k)
    part = spans.sample(_CALIBRATION_TOKENS)
    routing = match_recency(routing, part, seen, seed)
    routing = replace(routing, common=match_coupling(routing, part, seen, seed))
    return FittedRouting(routing, schedule, trace.layers)


def _ids(trace: Trace, layer: int, rows: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    """[rows, k] of one layer; all of `rows` have it."""
    place = np.cumsum(trace.recorded(layer)) - 1
    ids: NDArray[np.unsignedinteger] = trace.experts(layer)[place[rows]]
    return ids


def profile_shares(
    spans: Spans, seen: NDArray[np.unsignedinteger], experts: int
) -> NDArray[np.float32]:
    """[layers, profiles, experts] share of each profile's tokens that use each expert."""
    from moeprof.analysis.kernels import add_assignments

    profiles = int(spans.profile.max()) + 1
    group = np.repeat(spans.profile, np.diff(spans.starts)).astype(np.int32)
    tokens = np.bincount(group, minlength=profiles)[:, None]
    shares = np.empty((seen.shape[1], profiles, experts), np.float32)
    for layer in range(seen.shape[1]):
        uses = np.zeros((profiles, experts), np.int64)
        add_assignments(seen[spans.rows, layer], group, uses)
        mean = uses.sum(axis=0) / len(group)
        shares[layer] = (uses + _PRIOR_TOKENS * mean) / (tokens + _PRIOR_TOKENS)
    return shares
