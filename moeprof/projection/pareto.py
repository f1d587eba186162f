"""Which deployments are worth a look: those that no other beats in every respect."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(points: Iterable[T], value: Callable[[T], tuple[float, float]]) -> list[T]:
    """Those of `points` that no other is as good as in both of `value` and better in one.

    More is better in both. By falling first value, so by rising second one; of points that are
    alike the first is kept.
    """
    front: list[T] = []
    best = float("-inf")
    for point in sorted(points, key=lambda each: tuple(-part for part in value(each))):
        if value(point)[1] > best:
            front.append(point)
            best = value(point)[1]
    return front
