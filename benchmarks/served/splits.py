"""Which rows fit and which judge. No configuration ever stands on both sides but to calibrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .rows import ServedRow, by_configuration

SEEDS = range(5)
TRAINED = 0.5  # of configurations


class Split(NamedTuple):
    """Rows to fit on, rows to judge on, and what a user measured of the latter's system."""

    name: str
    train: list[ServedRow]
    test: list[ServedRow]
    calibration: list[ServedRow] = []  # noqa: RUF012 - a field of a tuple is never changed


def seeded_splits(
    rows: Sequence[ServedRow], seeds: Sequence[int] = SEEDS, trained: float = TRAINED
) -> list[Split]:
    """A share `trained` of the configurations, drawn by each seed, fits; the others judge."""
    groups = list(by_configuration(rows).values())
    splits = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(groups))
        cut = round(trained * len(groups))
        train, test = (
            [row for place in sorted(places) for row in groups[place]]
            for places in (order[:cut], order[cut:])
        )
        splits.append(Split(f"seed {seed}", train, test))
    return splits


def leave_one_out(
    rows: Sequence[ServedRow], group_of: Callable[[ServedRow], str], apart: str = ""
) -> list[Split]:
    """Each value of `group_of` judged by a fit on all others, or the one named `apart` alone."""
    names = [apart] if apart else sorted({group_of(row) for row in rows})
    return [
        Split(
            f"without {name}",
            [row for row in rows if group_of(row) != name],
            [row for row in rows if group_of(row) == name],
        )
        for name in names
    ]


def calibrated_splits(
    rows: Sequence[ServedRow],
    group_of: Callable[[ServedRow], str],
    count: int = 3,
    seeds: Sequence[int] = SEEDS,
) -> list[Split]:
    """A group left out, but for `count` of its runs, drawn by each seed, which may calibrate.

    Copies of the rows drawn leave the judging side with them. Groups of fewer than 2 `count` rows
    are passed over.
    """
    splits = []
    for name, train, test, _ in leave_one_out(rows, group_of):
        if len(test) < 2 * count:
            continue
        for seed in seeds:
            places = np.random.default_rng(seed).choice(len(test), count, replace=False)
            drawn = [test[place] for place in sorted(places)]
            times = {(row.ttft_ms, row.tpot_ms) for row in drawn}
            judged = [row for row in test if (row.ttft_ms, row.tpot_ms) not in times]
            splits.append(Split(f"{name}, seed {seed}", train, judged, drawn))
    return splits
