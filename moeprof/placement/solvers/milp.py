"""The optimum of small cases, and its certificate, as a mixed-integer program for HiGHS.

For expert e, replica number r and GPU g: z[e, r] = 1 where e has r replicas, y[e, r, g] = 1 where
one of these is on g. Minimise M subject to

    sum over r of z[e, r] = 1,   sum over g of y[e, r, g] = r z[e, r],   y[e, r, g] <= z[e, r],
    sum over e and r of y[e, r, g] = slots[g],
    sum over e and r of load[e] / r * y[e, r, g] <= M.

Equal shares make the load of a replica depend on their number: r as an index keeps that linear.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.placement.bounds import lower_bound_by_layer
from moeprof.placement.checks import check_load, check_topology
from moeprof.placement.solvers.problem import Map, Problem
from moeprof.placement.solvers.search import balanced, enough_load, placed
from moeprof.placement.topology import Topology

MOST_BINARIES = 3000  # beyond, a proof takes hours
_NODES = 20_000  # of the search tree, a layer: a bound on work, not on time
_GAP = 1e-6


class _Proof(NamedTuple):
    """What one layer's program came to."""

    slot: NDArray[np.int64] | None  # [slots] None where no map was met
    bound: float  # no map's busiest GPU is below


def milp(problem: Problem) -> Map:
    """The best map there is, or the better of HiGHS's and `best`'s where its nodes run out.

    Raises InputError for a case of more than `MOST_BINARIES` binaries.
    """
    topology = problem.topology
    _refuse_large(problem.experts, topology)
    enough = enough_load(problem, problem.max_imbalance or 1.0)

    def solve(row: int) -> NDArray[np.int64]:
        weight = problem.load[row]
        searched = balanced(problem, row, enough[row])
        if searched.load.max() <= enough[row] * (1 + _GAP):
            return searched.slot
        found = _solve(weight, topology).slot
        if found is None or placed(weight, found, topology).load.max() >= searched.load.max():
            return searched.slot
        return found

    return np.array([solve(row) for row in range(problem.layers)])


def proven_bound_by_layer(load: ArrayLike, topology: Topology) -> NDArray[np.float64]:
    """[layers] like `lower_bound_by_layer`, and what HiGHS proves for `load` [layers, experts].

    A map whose busiest GPU is there is optimal. Raises InputError as `milp` does.
    """
    given = check_load(load)
    check_topology(topology, given.shape[1])
    _refuse_large(given.shape[1], topology)
    proven = [_solve(row, topology).bound for row in given]
    return np.maximum(lower_bound_by_layer(given, topology), proven)


def _most_replicas(experts: int, topology: Topology) -> int:
    return min(topology.gpus, topology.slots_in_all - experts + 1)


def _refuse_large(experts: int, topology: Topology) -> None:
    binaries = experts * _most_replicas(experts, topology) * (topology.gpus + 1)
    if binaries > MOST_BINARIES:
        raise InputError(
            f"milp is for small cases: {experts} experts on {topology.gpus} GPUs need "
            f"{binaries:,} binaries of at most {MOST_BINARIES:,}; best takes any size"
        )


def _solve(weight: NDArray[np.float64], topology: Topology) -> _Proof:
    """One layer; loads in units of a GPU's mean, which is what HiGHS's tolerances are for."""
    from scipy.optimize import Bounds, milp

    mean = weight.sum() / topology.gpus
    program = _program(weight / mean, topology)
    count = program["c"].size
    upper = np.ones(count)
    upper[-1] = np.inf
    answer = milp(
        **program,
        integrality=np.append(np.ones(count - 1), 0),
        bounds=Bounds(0, upper),
        options={"node_limit": _NODES, "mip_rel_gap": _GAP},
    )
    bound = 0.0 if answer.mip_dual_bound is None else answer.mip_dual_bound * mean * (1 - _GAP)
    return _Proof(None if answer.x is None else _slots(answer.x, len(weight), topology), bound)


def _program(weight: NDArray[np.float64], topology: Topology) -> dict[str, Any]:
    """Objective and constraints over y [experts, replicas, gpus], z [experts, replicas] and M."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array, eye_array, hstack, kron, vstack

    experts, gpus = len(weight), topology.gpus
    most = _most_replicas(experts, topology)
    pairs = experts * most
    replicas = np.tile(np.arange(1, most + 1), experts)
    share = np.repeat(weight, most) / replicas
    per_pair = kron(eye_array(pairs), np.ones((1, gpus)))
    per_gpu = kron(np.ones((1, pairs)), eye_array(gpus))
    blocks = (
        # y of a pair, z, M, and the range of the row
        (None, kron(eye_array(experts), np.ones((1, most))), None, 1, 1),
        (per_pair, -eye_array(pairs) * replicas, None, 0, 0),
        (eye_array(pairs * gpus), -kron(eye_array(pairs), np.ones((gpus, 1))), None, -np.inf, 0),
        (per_gpu, None, None, np.array(topology.slots), np.array(topology.slots)),
        (kron(share[None], eye_array(gpus)), None, -np.ones((gpus, 1)), -np.inf, 0),
    )
    rows, low, high = [], [], []
    for y, z, m, least, largest in blocks:
        height = next(part.shape[0] for part in (y, z) if part is not None)
        widths = (pairs * gpus, pairs, 1)
        parts = [
            csr_array((height, width)) if part is None else csr_array(part)
            for part, width in zip((y, z, m), widths, strict=True)
        ]
        rows.append(hstack(parts))
        low.append(np.broadcast_to(least, height))
        high.append(np.broadcast_to(largest, height))
    objective = np.append(np.zeros(pairs * (gpus + 1)), 1.0)
    constraint = LinearConstraint(vstack(rows).tocsr(), np.hstack(low), np.hstack(high))
    return {"c": objective, "constraints": constraint}


def _slots(x: NDArray[np.float64], experts: int, topology: Topology) -> NDArray[np.int64]:
    """[slots] experts GPU by GPU, from the program's y."""
    y = x[: -1 - experts * _most_replicas(experts, topology)]
    held = np.round(y).reshape(experts, -1, topology.gpus).sum(axis=1) > 0
    return np.concatenate([np.flatnonzero(held[:, gpu]) for gpu in range(topology.gpus)])
