"""Fit the six constants of the law to timed cells. Deterministic: fixed starts, no draws."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moeprof.projection.moe_kernels.groups import peaks_of
from moeprof.projection.moe_kernels.law import LawConstants, Peaks, law_seconds
from moeprof.projection.moe_kernels.tables import Group, timed_cells, timed_work
from moeprof.projection.moe_kernels.work import RankWork

# launch_s, bandwidth_share, compute_share, tile_s, passes, blocks
_STARTS = ((20e-6, 0.8, 0.6, 3e-9, 1.0, 20.0), (20e-6, 0.8, 0.6, 3e-9, 1.0, 300.0))
_LOWEST = (1e-7, 0.02, 0.005, 1e-12, 1e-3, 1.0)
_HIGHEST = (2e-3, 1.6, 3.0, 1e-6, 1e2, 2000.0)
_TYPICAL_ERROR = 0.05  # beyond it a point counts less and less: cells have tactics of their own


class Timed(NamedTuple):
    """Points of one group: arrays [cells, tokens, routings]."""

    group: Group
    peaks: Peaks
    work: RankWork
    seconds: np.ndarray

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.group[2]


def timed_groups() -> list[Timed]:
    """All groups of the table."""
    groups = []
    for group, cells in timed_cells().items():
        peaks = peaks_of(group[0], group[3])
        work = timed_work(group, cells.tp, cells.ep, peaks.weight_bytes)
        groups.append(Timed(group, peaks, work, cells.seconds))
    return groups


def fit_law(timed: Timed, kept: np.ndarray | None = None) -> LawConstants:
    """Constants that bring the law nearest, in logarithms, to the points where `kept` holds."""
    from scipy.optimize import least_squares

    kept = np.ones(timed.seconds.shape, bool) if kept is None else kept
    work, measured = timed.work.at(kept), np.log(timed.seconds[kept])

    def misses(logs: np.ndarray) -> np.ndarray:
        constants = LawConstants(*np.exp(logs))
        return np.log(law_seconds(timed.kernel, constants, timed.peaks, work)) - measured

    best = min(
        (
            least_squares(
                misses,
                np.log(start),
                loss="cauchy",
                f_scale=_TYPICAL_ERROR,
                bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
                max_nfev=60,
            )
            for start in _STARTS
        ),
        key=lambda found: found.cost,
    )
    return LawConstants(*(float(f"{value:.4g}") for value in np.exp(best.x)))


def log_ratio(timed: Timed, constants: LawConstants) -> np.ndarray:
    """Logarithm of measured over law at each point."""
    law = law_seconds(timed.kernel, constants, timed.peaks, timed.work)
    return np.log(timed.seconds / law)
