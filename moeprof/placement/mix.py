"""A map fitted on one kind of traffic and judged on another, and one that suits all of them.

Every label's requests are divided in two halves. A map is fitted on one half of one label and
judged on the other half of each: the matrix. The map of the mix is fitted on all labels together,
each with the same weight, and one map is made to be good where it is worst. For every layer, with
p_d the share of domain d's assignments that each expert gets and weights w_d from equal, repeat

    map     = solve(sum over d of w_d p_d)
    w_d    *= exp(RATE x imbalance of the map on d), and normalise

and keep the map whose worst domain is best: multiplicative weights for a game of the map against
the domains (Freund, Schapire 1999, Adaptive game playing using multiplicative weights). A sum of
domains does not show whether each of them is even, so a search from that map and from the mix's
follows, which sees the domains apart (`scenarios.even_in_all`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_assignments
from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.placement.scenarios import even_in_all
from moeprof.placement.solve import solve_placement
from moeprof.placement.topology import Topology
from moeprof.placement.windows import SplitBy, split_windows
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace

ITERATIONS = 24
_RATE = 8.0
_SCALE = 1_000_000.0  # shares as loads: solvers take any unit


@dataclass(frozen=True)
class MixResult(Result):
    """Imbalances on the halves that were not fitted on, mean over layers, replicas equal."""

    domains: list[str]
    matrix: list[list[float]]  # [fitted on][judged on]
    linear: list[float]  # by domain: experts in order of id
    mix: list[float]  # by domain: fitted on all, weighted alike
    robust: list[float]  # by domain: fitted for the worst one
    worst_mix: float
    worst_robust: float
    worst_mix_fit: float  # on the halves that were fitted on
    worst_robust_fit: float
    requests: dict[str, int]  # by domain, both halves
    gpus: int
    nodes: int
    redundant: int
    solver: str
    seed: int
    placement: Placement = field(repr=False, metadata=NOT_JSON)  # the robust one
    # [layers, experts] all domains alike, per million assignments of a layer
    load: NDArray[np.int64] = field(repr=False, metadata=NOT_JSON)


def mix_domains(
    trace: Trace,
    topology: Topology,
    *,
    solver: str = "best",
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> MixResult:
    """The domain matrix of `trace`, whose labels are the domains, and a map for all of them.

    Raises InputError where fewer than two labels have two requests each, and as `solve_placement`
    does.
    """
    if iterations < 1:
        raise InputError(f"iterations = {iterations}: 1 at least")
    fit, test, requests = _halves(trace, seed)
    domains = list(fit)

    def solve(load: NDArray[np.float64]) -> Placement:
        return solve_placement(load, topology, solver=solver, seed=seed)

    maps = [solve(shares) for shares in fit.values()]
    linear = solve_placement(fit[domains[0]], topology, solver="linear")
    mixed = solve(np.mean(list(fit.values()), axis=0))
    robust = minimise_worst(fit, mixed, solver=solver, iterations=iterations, seed=seed)
    return MixResult(
        domains=domains,
        matrix=[_on(placement, test) for placement in maps],
        linear=_on(linear, test),
        mix=_on(mixed, test),
        robust=_on(robust, test),
        worst_mix=max(_on(mixed, test)),
        worst_robust=max(_on(robust, test)),
        worst_mix_fit=max(_on(mixed, fit)),
        worst_robust_fit=max(_on(robust, fit)),
        requests=requests,
        gpus=topology.gpus,
        nodes=topology.nodes,
        redundant=topology.slots_in_all - trace.experts_per_layer,
        solver=solver,
        seed=seed,
        placement=robust,
        load=np.rint(np.mean(list(fit.values()), axis=0)).astype(np.int64),
    )


def minimise_worst(
    shares: Mapping[str, NDArray[np.float64]],
    start: Placement,
    *,
    solver: str = "best",
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> Placement:
    """The map, on the topology of `start`, whose worst domain is best; `start` where none is.

    `shares` [layers, experts] is each domain's load. Layers are weighted apart; what is compared
    in the end is the mean over layers, as everywhere.
    """
    loads = np.stack(list(shares.values()))
    weights = np.full(loads.shape[:2], 1 / len(loads))  # [domains, layers]
    table = start.physical_to_logical_map.copy()
    worst = _by_layer(start, loads).max(axis=0)  # [layers]
    for _ in range(iterations):
        mixed = (weights[:, :, None] * loads).sum(axis=0)
        tried = solve_placement(mixed, start.topology, solver=solver, seed=seed)
        imbalance = _by_layer(tried, loads)
        better = imbalance.max(axis=0) < worst
        table[better] = tried.physical_to_logical_map[better]
        worst = np.minimum(worst, imbalance.max(axis=0))
        weights *= np.exp(_RATE * (imbalance - imbalance.max(axis=0)))
        weights /= weights.sum(axis=0)
    found = [start, Placement(table, start.experts, start.topology, start.allow_duplicates)]
    if not any(placement.duplicates for placement in found):
        found += [even_in_all(placement, loads, worst=True, seed=seed) for placement in found]
    return min(found, key=lambda placement: max(_on(placement, shares)))


def _by_layer(placement: Placement, loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """[domains, layers] imbalance of one map."""
    return np.stack([placement.imbalance_by_layer(load) for load in loads])


def _on(placement: Placement, loads: Mapping[str, NDArray[np.float64]]) -> list[float]:
    return [placement.imbalance(load) for load in loads.values()]


def _halves(
    trace: Trace, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]], dict[str, int]]:
    """The shares of each half by domain, and how many requests a domain has in both."""
    windows = split_windows(trace, by=SplitBy.REQUEST, seed=seed)
    if windows.fit is None:
        raise InputError(f"{trace}: holds counts only; domains need requests with labels")
    code, count = trace.label_code, len(trace.labels)
    held = {n: len(np.unique(trace.request[code == n])) for n in range(count)}
    named = [n for n in range(count) if held[n] > 1]
    if len(named) < 2:
        raise InputError(
            f"{trace}: needs two labels with two requests each, to fit on and to judge on; "
            f"{len(named)} have that"
        )
    group = np.where(code < 0, 2 * count, 2 * code + ~windows.fit).astype(np.int32)
    loads = count_assignments(trace, group, 2 * count + 1)
    fit, test = ({trace.labels[n]: _share(loads[2 * n + half]) for n in named} for half in (0, 1))
    return fit, test, {trace.labels[n]: held[n] for n in named}


def _share(load: NDArray[np.int64]) -> NDArray[np.float64]:
    """`load` as shares of each layer's assignments, times `_SCALE`."""
    whole = np.maximum(load.sum(axis=1, keepdims=True), 1)
    shares: NDArray[np.float64] = _SCALE * load / whole
    return shares
