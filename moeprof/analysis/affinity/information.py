"""Mutual information of a table of counts, and what shuffling alone would give.

I = sum_ab C_ab / N log2(C_ab N / (r_a c_b)), r and c the table's margins. Of few counts it is too
large. What tokens shuffled over each other would give on average has a closed form: margins stay,
and a cell is nearly a Poisson variable of the shuffles' mean and variance.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
_EXACT = 200.0  # means beyond have the series


def entropy_bits(counts: Table) -> float:
    """Of a distribution in proportion to `counts`."""
    total = counts.sum()
    return float((np.log(total) - _c_log_c(counts).sum() / total) / np.log(2)) if total else 0.0


def information_bits(table: Table) -> float:
    """Plain mutual information of `table`."""
    return entropy_bits(table.sum(axis=1)) + entropy_bits(table.sum(axis=0)) - entropy_bits(table)


def shuffled_information_bits(mean: Table, variance: Table) -> float:
    """Mean information of tables whose cells have this mean and variance, and fixed margins."""
    total = mean.sum()
    if not total:
        return 0.0
    relative = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
    more = (relative * _mean_excess(mean)).sum() / total / np.log(2)
    return information_bits(mean) + float(more)


def _c_log_c(counts: Table) -> Table:
    return counts * np.log(counts, out=np.zeros(counts.shape), where=counts > 0)


def _mean_excess(mean: Table) -> Table:
    """E[C ln C] - m ln m of Poisson variables C of mean m."""
    grid, values = _excess_grid()
    near = np.interp(np.log(np.maximum(mean, grid[0])), np.log(grid), values)
    far = 0.5 + 1 / (12 * np.maximum(mean, _EXACT))
    excess: Table = np.where(mean > _EXACT, far, near) * (mean > grid[0])
    return excess


@cache
def _excess_grid() -> tuple[Table, Table]:
    """Means, and E[C ln C] - m ln m at each, summed over C."""
    means = np.geomspace(1e-6, _EXACT, 400)
    counts = np.arange(1, 500)
    logs = counts * np.log(means[:, None]) - means[:, None] - np.cumsum(np.log(counts))
    values = np.exp(logs) @ (counts * np.log(counts)) - means * np.log(means)
    return means, values
