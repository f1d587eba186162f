"""Constants that relatives share: what a law gives to those it has seen, and to strangers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.served.pooling import Prior, fit_law
from moeprof.projection.step.pooled import PooledLaw

PRIOR = Prior(
    means={"read": (1.0, 1.0), "launch": (1.0, 1.0)},
    scales={"all": ("read", "launch")},
    levels={"gpu": {"read": 0.3}, "engine": {"all": 0.3}},
    noise=0.02,
    bend=2.0,
)
TRUE = PooledLaw(
    ("read", "launch"),
    PRIOR.scales,
    {"read": 1.5, "launch": 0.6},
    {"gpu": {"a": {"read": 1.2}, "b": {"read": 0.8}}, "engine": {"x": {"all": 1.3}, "y": {}}},
)


def rows(count: int = 300) -> tuple[np.ndarray, list[dict[str, str]], np.ndarray]:
    rng = np.random.default_rng(3)
    groups = [{"gpu": "ab"[i % 2], "engine": "xy"[i // 2 % 2]} for i in range(count)]
    amounts = rng.lognormal(0, 1, (count, 2))
    seconds = [row @ TRUE.constants(group) for row, group in zip(amounts, groups, strict=True)]
    return amounts, groups, np.array(seconds) * rng.lognormal(0, 0.02, count)


def test_a_fit_finds_the_constants_that_made_the_rows_though_some_are_wrong() -> None:
    amounts, groups, seconds = rows()
    seconds[::20] *= 3  # speculation that nobody noted
    law = fit_law(PRIOR, amounts, groups, seconds)
    for group in groups[:4]:
        assert law.constants(group) == pytest.approx(TRUE.constants(group), rel=0.03)


def test_a_fit_is_the_same_every_time() -> None:
    amounts, groups, seconds = rows(60)
    first, second = (fit_law(PRIOR, amounts, groups, seconds).to_dict() for _ in range(2))
    assert first == second


def test_a_stranger_gets_the_mean_and_is_known_to_be_one() -> None:
    stranger = {"gpu": "c", "engine": "z"}
    assert TRUE.constants(stranger).tolist() == [1.5, 0.6]
    assert TRUE.knows("gpu", "a")
    assert not TRUE.knows("gpu", "c")


def test_a_law_survives_its_file() -> None:
    assert PooledLaw.from_dict(TRUE.to_dict()) == TRUE


def test_factors_are_added_to_those_that_a_group_has() -> None:
    changed = TRUE.with_factors("engine", {"x": {"all": 2.0}, "new": {"read": 3.0}})
    ratio = changed.constants({"engine": "x"}) / TRUE.constants({"engine": "x"})
    assert ratio == pytest.approx(2.0)
    assert changed.constants({"engine": "new"}).tolist() == pytest.approx([4.5, 0.6])
