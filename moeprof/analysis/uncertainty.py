"""How sure a number is: intervals over requests, p-values of shuffles, and many tests at once.

Tokens of one request are not independent, so whole requests are drawn, never tokens: the cluster
bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, sections 3.8, 5.2).
p-values count the observed value among the shuffles, so none is 0 (Phipson and Smyth 2010,
doi:10.2202/1544-6115.1585). q-values bound the share of false discoveries (Benjamini and Hochberg
1995, doi:10.1111/j.2517-6161.1995.tb02031.x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.result import Result

RESAMPLES = 200
LEVEL = 0.95
ROUNDING = 1e-9  # of sums in double precision, relative
Kind = Literal["percentile", "basic"]


@dataclass(frozen=True)
class Interval(Result):
    """A bootstrap interval of a number, in its unit."""

    low: float
    high: float
    level: float = LEVEL
    resamples: int = RESAMPLES
    unit_of_resampling: str = "requests"


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    requests: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: NDArray[np.intp] | None = None,
) -> Interval:
    """The 95 % percentile interval of `statistic`, `requests` drawn with replacement.

    `statistic` is given weights [requests]: how often each request was drawn. With `strata`
    [requests] the requests of each stratum are drawn among themselves, so none is ever empty.
    """
    drawn = draw_requests(requests, resamples=resamples, seed=seed, strata=strata)
    return interval_of(np.array([statistic(weights) for weights in drawn]))


def draw_requests(
    requests: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: NDArray[np.intp] | None = None,
) -> NDArray[np.int64]:
    """[resamples, requests] how often each request is drawn, for statistics that take all at once.

    Raises InputError where there are no requests or no resamples.
    """
    if requests < 1 or resamples < 1:
        raise InputError(
            f"{requests} requests, {resamples} resamples: an interval needs at least 1 of each"
        )
    rng = np.random.default_rng(seed)
    stratum = np.zeros(requests, np.intp) if strata is None else strata
    weights = np.zeros((resamples, requests), np.int64)
    for name in np.unique(stratum):
        members = np.flatnonzero(stratum == name)
        even = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), even, size=resamples)
    return weights


def deal_halves(
    requests: int, rng: np.random.Generator, strata: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """[requests] 0 or 1, the half each is dealt to: turn by turn in random order.

    With `strata` [requests] within each of them, and on across their borders.
    """
    order = rng.permutation(requests)
    if strata is not None:
        order = order[np.argsort(strata[order], kind="stable")]
    half = np.zeros(requests, np.intp)
    half[order[1::2]] = 1
    return half


def interval_of(
    values: NDArray[np.float64], observed: float | None = None, *, kind: Kind = "percentile"
) -> Interval:
    """The 95 % interval that the resampled `values` [resamples] give.

    "percentile" reads it off the values. "basic" turns them around the `observed` value, which
    takes out the bias of statistics that noise alone makes larger, as entropies and divergences:
    a resample is as much too large against the observed value as that is against the true one.
    """
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if kind == "basic":
        if observed is None:
            raise InputError("a basic interval needs the observed value")
        low, high = 2 * observed - high, 2 * observed - low
    return Interval(float(low), float(high), resamples=len(values))


def permutation_p(observed: float, null: ArrayLike) -> float:
    """Chance of a value at least as large under the `null` [shuffles]: (1 + #) / (1 + n)."""
    return float(permutation_ps(observed, null))


def permutation_ps(observed: ArrayLike, null: ArrayLike) -> NDArray[np.float64]:
    """The same for many values: `observed` [...] against `null` [shuffles, ...].

    What is equal but for rounding is reached.
    """
    shuffled, value = np.asarray(null, np.float64), np.asarray(observed, np.float64)
    reached = (shuffled >= value - ROUNDING * np.abs(value)).sum(axis=0)
    return np.asarray((1 + reached) / (1 + len(shuffled)), np.float64)


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """The q-value of each test in `p` [...]: smallest false discovery rate at which it passes.

    NaN marks what could not be tested: it stays NaN and does not count as a test.
    """
    values = np.asarray(p, np.float64)
    flat = values.ravel()
    order = np.argsort(flat)  # NaN last
    tests = int((~np.isnan(flat)).sum())
    ranked = flat[order[:tests]] * tests / np.arange(1, tests + 1)
    q = np.full(flat.shape, np.nan)
    q[order[:tests]] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1)
    return q.reshape(values.shape)


def jackknife(left_one_out: NDArray[np.float64], observed: float) -> Interval:
    """The 95 % interval of `observed` from its values [blocks] with one block of requests left out.

    For what is too dear to resample: variance (n - 1) / n sum (x_i - mean)^2 (Efron and Tibshirani,
    An Introduction to the Bootstrap, 1993, section 11.5), Student's t of n - 1 degrees of freedom.
    """
    from scipy.special import stdtrit

    blocks = len(left_one_out)
    if blocks < 2:
        raise InputError(f"{blocks} blocks of requests: a jackknife needs at least 2")
    error = np.sqrt((blocks - 1) / blocks * ((left_one_out - left_one_out.mean()) ** 2).sum())
    reach = float(stdtrit(blocks - 1, (1 + LEVEL) / 2) * error)
    return Interval(
        observed - reach,
        observed + reach,
        resamples=blocks,
        unit_of_resampling="blocks of requests",
    )
