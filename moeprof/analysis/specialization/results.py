"""What the analysis of specialization answers."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.analysis.specialization.factors import RoutingFactors
from moeprof.analysis.specialization.specialists import Specialist
from moeprof.analysis.uncertainty import Interval
from moeprof.result import Result


@dataclass(frozen=True)
class Divergence(Result):
    """How far apart the domains are, mean over layers, in bits."""

    specialization: float
    null: float
    p_value: float


@dataclass(frozen=True)
class LayerSpecialization(Result):
    """How far apart the domains are in one layer, in bits."""

    layer: int  # native index
    specialization: float
    null: float  # mean over shuffles
    null_p95: float
    excess: float  # specialization - null
    interval: Interval  # of the divergence, without the bias that noise adds to its estimate
    p_value: float
    q_value: float  # over the layers


@dataclass(frozen=True)
class SpecializationResult(Result):
    """Divergence between labels, in bits, and its null distribution."""

    domains: list[str]
    requests: int
    requests_by_domain: dict[str, int]
    specialization: float
    null: float  # mean over shuffles
    null_p95: float
    p_value: float  # share of shuffles that diverge at least as much
    smallest_p: float  # that any routing could reach: one over the ways to group the requests
    excess: float  # specialization - null
    interval: Interval  # of the divergence, without the bias that noise adds to its estimate
    per_layer: list[float]  # specialization of each layer
    layers: list[LayerSpecialization]
    distances: list[list[float]]  # [domains, domains] excess divergence of two, mean over layers
    specialists: list[Specialist]  # the first 20, those that matter most to the divergence first
    specialists_found: int
    tests: int  # (expert, domain, layer) places that were tested
    by_prefixes: dict[str, Divergence]  # "once" and "all": what shared beginnings do to it
    factors: RoutingFactors  # what else routing depends on; shared beginnings
    shuffles: int
    seed: int
