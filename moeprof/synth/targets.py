"""Synthetic routing by targets: what a user asks for, made into a routing model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.reuse import repeats_of
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.synth.popularity import Shape, measured_shares, profiles_around, target_shares
from moeprof.synth.routing import RoutingModel
from moeprof.synth.schedule import Schedule
from moeprof.trace import Phase

PROFILES = 64  # per domain: requests beyond that share them
SAMPLE_TOKENS = 16_384  # what targets are matched on
_SAMPLE_LAYERS = 4
_MOST_GAIN = 1e5
_HALVINGS = 20


@dataclass(frozen=True)
class RoutingTargets:
    """What synthetic routing should show.

    `imbalance` is max / mean of a layer's load: of every layer, or one figure a layer. With `load`
    [layers, experts] the popularities are those measured ones instead. `repeat` is the share of a
    token's experts that the token before it used; None: what popularity alone makes of it. The pull
    of a use fades as (1 + tokens since)^-`decay`. `lag_profile` states it instead, for tokens 1, 2,
    4, 8, ... apart. The spreads are sigmas of log-normal factors on popularity, by domain and by
    request. `coupling` is the probability that a slot draws alike in all layers.
    """

    imbalance: float | Sequence[float] = 1.5
    shape: Shape = Shape.LOGNORMAL
    load: NDArray[np.float64] | None = None
    repeat: float | None = 0.3
    decay: float = 1.5
    lag_profile: Sequence[float] = ()
    coupling: float = 0.2
    domains: int = 1
    domain_spread: float = 0.5
    request_spread: float = 0.3

    def __post_init__(self) -> None:
        spreads = (self.domain_spread, self.request_spread)
        if not (
            (self.repeat is None or 0 <= self.repeat < 1)
            and 0 < self.decay <= 16
            and 0 <= self.coupling < 1
            and self.domains >= 1
            and all(0 <= spread <= 4 for spread in spreads)
            and all(0 <= share < 1 for share in self.lag_profile)
        ):
            raise InputError(
                "synthetic routing takes repeat, lag profile and coupling from 0 to below 1, "
                "decay above 0 to 16, domains >= 1 and spreads from 0 to 4"
            )

    @property
    def labels(self) -> list[str]:
        """Names of the domains."""
        return [f"domain-{number}" for number in range(self.domains)]


def routing_for(
    targets: RoutingTargets, model: MoEModel, schedule: Schedule, seed: int
) -> RoutingModel:
    """The routing of `model` that meets `targets` on `schedule`, SAMPLE_TOKENS long or more.

    Raises InputError where a target is out of reach, and says what is in it.
    """
    rng = np.random.default_rng([seed, 1])
    bases = _bases(targets, model, rng)
    count = targets.domains * PROFILES
    use = np.bincount(schedule.profile, minlength=count).astype(np.float64)
    shares = np.empty((len(bases), count, model.experts), np.float32)
    for layer, base in enumerate(bases):
        domain = rng.normal(0, targets.domain_spread, (targets.domains, 1, model.experts))
        if targets.domains == 1:
            domain[:] = 0.0  # one domain is the whole
        request = rng.normal(0, targets.request_spread, (targets.domains, PROFILES, model.experts))
        spread = (domain + request).reshape(count, -1)
        shares[layer] = profiles_around(base, use, spread, model.top_k)
    gain = np.ones((len(bases), 2, model.experts + 1))
    routing = RoutingModel(shares, gain, model.top_k)
    if targets.lag_profile:
        routing = _match_lags(routing, targets, schedule, seed)
    elif targets.repeat is not None:
        routing = _match_repeat(routing, targets.repeat, targets.decay, schedule, seed)
    return replace(routing, common=targets.coupling)


def _bases(
    targets: RoutingTargets, model: MoEModel, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[layers, experts] shares of every layer over all requests."""
    layers = len(model.moe_layers)
    if targets.load is not None:
        shares = measured_shares(np.asarray(targets.load, np.float64), model.top_k)
        if shares.shape != (layers, model.experts):
            raise InputError(
                f"measured loads are of {shares.shape[0]} layers x {shares.shape[1]} experts, "
                f"{model.name} has {layers} x {model.experts}"
            )
        return shares
    asked = np.atleast_1d(np.asarray(targets.imbalance, np.float64))
    if len(asked) not in (1, layers):
        raise InputError(f"{len(asked)} figures of imbalance for {layers} MoE layers")
    return np.stack(
        [
            target_shares(figure, targets.shape, model.experts, model.top_k, rng)
            for figure in np.broadcast_to(asked, layers).tolist()
        ]
    )


class _Sample:
    """Some layers and the first requests of a schedule, drawn again and again."""

    def __init__(self, routing: RoutingModel, schedule: Schedule, seed: int) -> None:
        chosen = np.linspace(0, routing.layers - 1, min(routing.layers, _SAMPLE_LAYERS)).astype(int)
        self._routing = replace(routing, share=routing.share[chosen], gain=routing.gain[chosen])
        self._spans = schedule.spans().sample(SAMPLE_TOKENS)
        decode = schedule.phase[self._spans.rows] == Phase.DECODE
        self._rows = self._spans.rows[decode] if decode.any() else self._spans.rows
        self._schedule = schedule
        self._seed = seed
        self._drawn = np.empty((len(schedule), len(chosen), routing.top_k), np.uint16)

    def repeats(self, gain: NDArray[np.float64]) -> NDArray[np.float64]:
        """Repeat by lag (1, 2, 4, ...) with `gain` [experts + 1] in every layer; NaN: no pair."""
        gains = np.broadcast_to(gain, self._routing.gain.shape).copy()
        replace(self._routing, gain=gains).draw_spans(self._spans, self._seed, self._drawn)
        request, position = self._schedule.request[self._rows], self._schedule.position[self._rows]
        return repeats_of(request, position, self._drawn[self._rows], self._routing.experts)


def _match_repeat(
    routing: RoutingModel, repeat: float, decay: float, schedule: Schedule, seed: int
) -> RoutingModel:
    """`routing` with a gain that fades over recency, as high as `repeat` takes."""
    sample = _Sample(routing, schedule, seed)
    fade = (1 + np.arange(routing.experts + 1) / routing.top_k) ** -decay
    fade[-1] = fade[:-1].mean()  # else the first tokens of a request would only repeat each other

    def reached(height: float) -> float:
        return float(sample.repeats(1 + np.expm1(height) * fade)[0])

    low, high = np.log(1e-3), np.log(_MOST_GAIN)
    least, most = reached(low), reached(high)
    if np.isnan(least):  # no two tokens follow each other
        return routing
    if not least <= repeat <= most:
        raise InputError(
            f"repeat {repeat:g}: with these popularities and decay {decay:g} it is from "
            f"{least:.2f} to {most:.2f}; a higher decay widens that"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= repeat else (middle, high)
    gain = 1 + np.expm1(high) * fade
    return replace(routing, gain=np.broadcast_to(gain, routing.gain.shape).copy())


def _match_lags(
    routing: RoutingModel, targets: RoutingTargets, schedule: Schedule, seed: int
) -> RoutingModel:
    """`routing` with a gain for each octave of recency, so that each lag repeats as asked.

    Experts last used d tokens ago stand near rank d k (1 - repeat), so the gain of that octave is
    raised or lowered by asked / drawn, again and again. Nearest fit: not every profile exists.
    """
    sample = _Sample(routing, schedule, seed)
    asked = np.asarray(targets.lag_profile)
    tokens = np.arange(routing.experts) / (routing.top_k * max(0.1, 1 - asked[0])) + 1
    octave = np.minimum(np.floor(np.log2(tokens)).astype(int), len(asked) - 1)
    logs = np.zeros(len(asked))
    for done in range(_HALVINGS):
        drawn = sample.repeats(_stepped(logs, octave))[: len(asked)]
        if len(drawn) < len(asked) or np.isnan(drawn).any():
            raise InputError(f"requests are too short for {len(asked)} lags of a profile")
        odds = np.log(asked + 1e-6) - np.log1p(-asked) - np.log(drawn + 1e-6) + np.log1p(-drawn)
        logs = np.clip(logs + odds * min(1.0, 6 / (done + 1)), -7, 11)
    gain = _stepped(logs, octave)
    return replace(routing, gain=np.broadcast_to(gain, routing.gain.shape).copy())


def _stepped(logs: NDArray[np.float64], octave: NDArray[np.int64]) -> NDArray[np.float64]:
    """[experts + 1] gains of each recency's octave; the mean for what is new to a request."""
    gain = np.exp(logs)[octave]
    return np.append(gain, gain.mean())
