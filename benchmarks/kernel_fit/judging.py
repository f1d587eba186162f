"""Predict timed points from others, and say how far off that is: every group, four ways.

`tokens`: every second token count is left out; `routing`: each of the three from the other two;
`cells`: TP x EP cells left out, in six folds in which no neighbours meet; `system`: all tables of a
device left out, its constants borrowed from the most similar groups of the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.kernel_fit.fitting import Timed, fit_law, log_ratio
from moeprof.hardware import load_profile
from moeprof.projection.moe_kernels.groups import FEW_TOKENS, borrow_constants, is_near
from moeprof.projection.moe_kernels.law import LawConstants, law_seconds
from moeprof.projection.moe_kernels.tables import ROUTINGS, Group, log_correction

FOLDS = 6


class Donor(NamedTuple):
    """Whose constants are borrowed, and whether that device is nearly the same."""

    hardware: str
    near: bool


def odd_tokens(timed: Timed) -> np.ndarray:
    """Mask of every second token count, the last one aside: beyond it nothing is known."""
    mask = np.zeros(timed.seconds.shape, bool)
    mask[:, 1::2] = True
    return mask


def tokens_out(timed: Timed) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of measured over predicted for every second token count: by law, by table."""
    left_out = odd_tokens(timed)
    ratio = log_ratio(timed, fit_law(timed, ~left_out))
    rest = ratio[:, 1::2].copy()
    for cell, own in enumerate(ratio):
        nodes = timed.work.at(cell, slice(0, None, 2))
        asked = timed.work.at(cell, slice(1, None, 2))
        rest[cell] -= log_correction(nodes, own[0::2], asked)
    return ratio[:, 1::2], rest


def routing_out(timed: Timed, routing: str) -> np.ndarray:
    """Logarithm of measured over predicted [cells, tokens] for one routing from the other two."""
    out = ROUTINGS.index(routing)
    others = [place for place in range(len(ROUTINGS)) if place != out]
    kept = np.zeros(timed.seconds.shape, bool)
    kept[:, :, others] = True
    ratio = log_ratio(timed, fit_law(timed, kept))
    rest = ratio[:, :, out].copy()
    for cell, own in enumerate(ratio):
        nodes = timed.work.at(cell).at(slice(None), others)
        asked = timed.work.at(cell).at(slice(None), out)
        rest[cell] -= log_correction(nodes, own[:, others], asked)
    return rest


def cells_out(timed: Timed) -> np.ndarray:
    """Logarithm of measured over law at every point, its cell and a sixth of the rest unseen."""
    tp, ep = (np.log2(axis[:, 0, 0]).astype(int) for axis in (timed.work.tp, timed.work.ep))
    fold = (tp + 2 * ep) % FOLDS
    rest = np.zeros(timed.seconds.shape)
    for one in np.unique(fold):
        kept = np.zeros(timed.seconds.shape, bool)
        kept[fold != one] = True
        rest[fold == one] = log_ratio(timed, fit_law(timed, kept))[fold == one]
    return rest


def donor_law(timed: Timed, fitted: dict[Group, LawConstants]) -> tuple[np.ndarray, Donor]:
    """Logarithm of measured over law with others' constants, and whose they mostly are."""
    hardware, engine, kernel, dtype = timed.group
    others = {group: own for group, own in fitted.items() if group[0] != hardware}
    profile = load_profile(hardware)
    donor, constants = borrow_constants(others, profile, engine, dtype, kernel)
    law = law_seconds(kernel, constants, timed.peaks, timed.work)
    return np.log(timed.seconds / law), Donor(donor[0], is_near(donor, profile))


def few_tokens(timed: Timed) -> np.ndarray:
    """Mask [tokens] of the token counts up to 512."""
    return np.asarray(timed.work.tokens[0, :, 0] <= FEW_TOKENS)
