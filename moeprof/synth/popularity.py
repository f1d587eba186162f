"""Popularities with a given imbalance, and profiles around them that keep it.

A share is the share of tokens that use an expert: at most 1, and the shares of a layer sum to k.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError

_ROUNDS = 30
_LEAST = 1e-9


class Shape(StrEnum):
    """How popularity falls from the first expert to the last."""

    LOGNORMAL = "lognormal"  # exp(s z), z the normal quantiles
    ZIPF = "zipf"  # rank^-s (Zipf 1949)


def shares_of(weight: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """[..., experts] shares in proportion to `weight`, none above 1, that sum to `top_k`."""
    share = np.maximum(weight / weight.sum(axis=-1, keepdims=True), _LEAST) * top_k
    while (share > 1.0).any():  # what is cut off at 1 goes to the others
        free = share < 1.0
        left = top_k - (~free).sum(axis=-1, keepdims=True)
        scale = left / np.maximum(np.where(free, share, 0.0).sum(axis=-1, keepdims=True), _LEAST)
        share = np.where(free, share * scale, 1.0)
    capped: NDArray[np.float64] = share
    return capped


def target_shares(
    imbalance: float, shape: Shape, experts: int, top_k: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[experts] shares of one layer with the max / mean that was asked for, in random order.

    Raises InputError where no shares have it: the most popular expert is in at most every token.
    """
    most = experts / top_k
    if not 1 <= imbalance <= 0.99 * most and imbalance != 1:
        raise InputError(
            f"imbalance {imbalance:g}: top-{top_k} of {experts} experts have 1 to {0.99 * most:.4g}"
        )
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = shares_of(_weights(shape, middle, experts), top_k).max() * most
        low, high = (low, middle) if reached >= imbalance else (middle, high)
    return rng.permutation(shares_of(_weights(shape, high, experts), top_k))


def _weights(shape: Shape, steepness: float, experts: int) -> NDArray[np.float64]:
    """[experts] descending from 1; in logarithms, so that a steep one does not overflow."""
    if shape is Shape.ZIPF:
        logs = -np.log(np.arange(1, experts + 1))
    else:
        from scipy.special import ndtri

        logs = ndtri(1 - (np.arange(experts) + 0.5) / experts)
    weights: NDArray[np.float64] = np.exp(np.maximum(steepness * (logs - logs[0]), -700.0))
    return weights


def read_load(path: Path) -> NDArray[np.float64]:
    """[layers, experts] of an .npy file. Raises InputError where there is none."""
    try:
        load = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as .npy: {error}") from None
    if not isinstance(load, np.ndarray) or load.dtype.kind not in "iuf":
        raise InputError(f"{path}: is not one array of numbers")
    return load.astype(np.float64)


def measured_shares(load: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """[layers, experts] shares of measured loads. Raises InputError where they are no loads."""
    if load.ndim != 2 or not np.isfinite(load).all() or (load < 0).any():
        raise InputError("measured loads are [layers, experts] numbers, none below 0")
    total = load.sum(axis=1, keepdims=True)
    if (total <= 0).any() or ((load > 0).sum(axis=1) < top_k).any():
        raise InputError(f"every layer of measured loads needs at least {top_k} experts in use")
    return shares_of(load / total * top_k, top_k)


def profiles_around(
    base: NDArray[np.float64],
    use: NDArray[np.float64],
    spread: NDArray[np.float64],
    top_k: int,
) -> NDArray[np.float32]:
    """[profiles, experts] shares around `base` [experts], moved by `spread` [profiles, experts].

    `spread` are logarithms. The mean over profiles, weighted by `use` [profiles], is `base`
    again: their columns are scaled to it and their rows to k in turn (Sinkhorn 1967).
    """
    shares = shares_of(base * np.exp(spread), top_k)
    weight = use / use.sum()
    for _ in range(_ROUNDS):
        mean = weight @ shares
        shares = shares_of(shares * (base / np.maximum(mean, _LEAST)), top_k)
    return shares.astype(np.float32)
