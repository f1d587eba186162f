"""Which experts are of which domain: an expert's use in a domain against its use elsewhere.

The OLMoE paper (Muennighoff et al. 2024, arXiv 2409.02060, section 5.3) defines the domain
specialization of expert e for domain d as N_(e,d) / N_d: the share of d's tokens that choose e. The
test asks whether that share differs from the share of all other domains' tokens. A request is a
cluster: t is the difference over its standard error, that of ratios over requests (Särndal,
Swensson and Wretman 1992, sections 4.2 and 5.6). What t is by chance is not read off a table, which
few requests of a domain do not follow: it is that of shuffled labels, pooled over the layer's and
all other layers' experts for each domain (Storey and Tibshirani 2003, doi:10.1073/pnas.1530509100).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.specialization.divergence import shares
from moeprof.analysis.specialization.grouping import Assignments
from moeprof.analysis.uncertainty import benjamini_hochberg
from moeprof.result import Result

FALSE_DISCOVERIES = 0.05
SHOWN = 20


@dataclass(frozen=True)
class Specialist(Result):
    """An expert that one domain's tokens choose more often than all others' do."""

    domain: str
    layer: int  # native index
    expert: int
    share: float  # of the domain's tokens that choose it: OLMoE's domain specialization
    share_elsewhere: float  # of all other labelled tokens
    lift: float | None  # share over share_elsewhere; None: never chosen elsewhere
    bits: float  # its part of the layer's divergence
    p_value: float
    q_value: float  # over all experts, domains and layers


class Use(NamedTuple):
    """One layer's use of each expert by each domain, [draws, domains, experts]."""

    share: NDArray[np.float64]  # of the domain's assignments
    elsewhere: NDArray[np.float64]  # of all other assignments
    t: NDArray[np.float64]  # size of the difference over its standard error; NaN: no telling


def expert_use(counts: NDArray[np.float64], domains: Assignments) -> Use:
    """The use of each expert that one layer's `counts` [requests, experts] show."""
    size = counts.sum(axis=1)  # [requests]; 0: no tokens in this layer
    sums = [domains.sums(part) for part in (counts, counts**2, counts * size[:, None])]
    scales = [domains.sums(part) for part in ((size > 0).astype(np.float64), size, size**2)]
    share, variance = _ratio_variance(*sums, *scales)
    elsewhere, other_variance = _ratio_variance(*map(_others, sums), *map(_others, scales))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(share - elsewhere) / np.sqrt(variance + other_variance)
    return Use(share, elsewhere, t)


def _others(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[draws, domains, ...] the sums of all other domains."""
    others: NDArray[np.float64] = sums.sum(axis=1, keepdims=True) - sums
    return others


def _ratio_variance(
    count: NDArray[np.float64],
    squares: NDArray[np.float64],
    products: NDArray[np.float64],
    requests: NDArray[np.float64],
    size: NDArray[np.float64],
    size_squares: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[draws, domains, experts] share = sum x / sum m, its variance over requests; NaN for one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = count / size[..., None]
        residual = squares - 2 * share * products + share**2 * size_squares[..., None]
        scale = np.where(requests > 1, requests / (requests - 1), np.nan) / size**2
        variance = residual.clip(min=0) * scale[..., None]
    return share, variance


def pooled_p_values(t: NDArray[np.float64], null: NDArray[np.floating]) -> NDArray[np.float64]:
    """p-values of `t` [layers, domains, experts], NaN where there is none.

    `null` [layers, shuffles, domains, experts] is t of shuffled labels.
    """
    p = np.full(t.shape, np.nan)
    for domain in range(t.shape[1]):
        values = null[:, :, domain].ravel()
        values = np.sort(values[~np.isnan(values)])
        known = ~np.isnan(t[:, domain])
        reached = len(values) - np.searchsorted(values, t[:, domain][known])
        p[:, domain][known] = (1 + reached) / (1 + len(values))
    return p


def find_specialists(
    uses: list[Use],
    null: list[NDArray[np.float32]],
    layers: tuple[int, ...],
    names: list[str],
    top_k: int,
) -> tuple[list[Specialist], int, int]:
    """From t of each layer and `null`, its [shuffles, domains, experts] of shuffled labels.

    The first `SHOWN` by their part of the divergence, how many there are, and the tests made.
    """
    p = pooled_p_values(np.concatenate([use.t for use in uses]), np.stack(null))
    q = benjamini_hochberg(p)
    share = np.concatenate([use.share for use in uses])
    elsewhere = np.concatenate([use.elsewhere for use in uses])
    mean = shares(np.nan_to_num(share)).mean(axis=1, keepdims=True)
    ratio = np.divide(share, mean, out=np.ones(share.shape), where=share > 0)
    bits = np.nan_to_num(share) * np.log2(ratio) / len(names)
    found = (q <= FALSE_DISCOVERIES) & (share > elsewhere)
    places = np.argwhere(found)
    order = np.argsort(-bits[found], kind="stable")[:SHOWN]
    listed = [
        Specialist(
            domain=names[domain],
            layer=layers[row],
            expert=int(expert),
            share=float(share[row, domain, expert] * top_k),
            share_elsewhere=float(elsewhere[row, domain, expert] * top_k),
            lift=_lift(share[row, domain, expert], elsewhere[row, domain, expert]),
            bits=float(bits[row, domain, expert]),
            p_value=float(p[row, domain, expert]),
            q_value=float(q[row, domain, expert]),
        )
        for row, domain, expert in places[order].tolist()
    ]
    return listed, len(places), int((~np.isnan(p)).sum())


def _lift(share: float, elsewhere: float) -> float | None:
    return float(share / elsewhere) if elsewhere > 0 else None
