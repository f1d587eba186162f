"""Loads that a window's traffic might have had: samples of its requests, or of its blocks.

A map that is even to the last assignment on a short window is fitted to the window's noise. What
it will meet is other requests, so it is fitted to samples of them: a Bayesian bootstrap (Rubin
1981, The Bayesian bootstrap), where every request has a weight drawn at random. Weights are drawn
from a gamma distribution of shape 1/2, which spreads twice as much as sampling alone (shape 1),
for traffic drifts beside. A window of few requests is cut into blocks of consecutive tokens, the
requests of which a longer one would be made.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.counting import count_assignments
from moeprof.trace import Trace

SAMPLES = 64
_FEWEST_REQUESTS = 20
_BLOCKS = 16
_SHAPE = 0.5  # of the weights' gamma distribution
_MOST_GROUPS = 256  # of requests, that their loads may be held in memory


def window_scenarios(
    trace: Trace, window: NDArray[np.bool_], *, samples: int = SAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """[samples, layers, experts] loads that the tokens of `window` [tokens] might have had."""
    counts = _group_loads(trace, window, seed).astype(np.float64)
    weights = np.random.default_rng(seed).gamma(_SHAPE, 1 / _SHAPE, (samples, len(counts)))
    return np.tensordot(weights, counts, axes=1)


def _group_loads(trace: Trace, window: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """[groups, layers, experts] assignments of each request, or of groups or blocks of them."""
    rows = np.flatnonzero(window)
    requests, number = np.unique(trace.request[rows], return_inverse=True)
    if len(requests) < _FEWEST_REQUESTS:
        number = np.arange(len(rows)) * _BLOCKS // max(len(rows), 1)
    elif len(requests) > _MOST_GROUPS:
        order = np.random.default_rng(seed).permutation(len(requests))
        number = (order % _MOST_GROUPS)[number]
    groups = int(number.max(initial=-1)) + 1
    group = np.full(trace.tokens, groups, np.int32)
    group[rows] = number
    return count_assignments(trace, group, groups + 1)[:groups]
