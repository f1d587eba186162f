"""`--fail-on`: when is a difference too large? A small language, read by hand.

    mean_imbalance > 5%                  B is more than 5 % of A above A
    next_token_repeat < -0.02            B is more than 0.02 below A
    gini > 0.01 and significant          ... and the difference of gini is significant
    agreement < 95%                      less than 95 % of the experts of a token are the same
    significant                          any figure differs significantly

`or` joins such conditions, `and` binds tighter. Of figures by layer any layer will do.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from moeprof.errors import InputError

_TOKEN = re.compile(
    r"\s*(<=|>=|<|>|[+-]?\d[\d.]*(?:[eE][+-]?\d+)?%?|[A-Za-z_](?:\[[^\]]*\]|[^\s<>\[])*)"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SIGNIFICANT = "significant"


class Measure(NamedTuple):
    """What a condition may ask of one figure."""

    value: float  # the difference, or the figure itself where it is of both, as agreement is
    base: float  # what per cent are of
    significant: bool


class _Bound(NamedTuple):
    metric: str
    compare: str
    number: float
    per_cent: bool

    def holds(self, measure: Measure) -> bool:
        limit = self.number / 100 * abs(measure.base) if self.per_cent else self.number
        return _COMPARE[self.compare](measure.value, limit)

    def __str__(self) -> str:
        return f"{self.metric} {self.compare} {self.number:g}{'%' if self.per_cent else ''}"


class _All(NamedTuple):
    """Bounds that must all hold, of differences that must be significant if `significant`."""

    bounds: list[_Bound]
    significant: bool

    def __str__(self) -> str:
        words = [str(bound) for bound in self.bounds] + [SIGNIFICANT] * self.significant
        return " and ".join(words)


def check_conditions(expression: str, measures: Mapping[str, Sequence[Measure]]) -> list[str]:
    """The conditions of `expression` that hold, in words: none if all is well.

    Raises InputError where it cannot be read or names a figure that is not in `measures`.
    """
    conditions = _parse(expression, measures)
    return [str(condition) for condition in conditions if _holds(condition, measures)]


def _holds(condition: _All, measures: Mapping[str, Sequence[Measure]]) -> bool:
    if not condition.bounds:
        return any(measure.significant for found in measures.values() for measure in found)
    return all(
        any(
            bound.holds(measure) and (measure.significant or not condition.significant)
            for measure in measures[bound.metric]
        )
        for bound in condition.bounds
    )


def _parse(expression: str, measures: Mapping[str, Sequence[Measure]]) -> list[_All]:
    tokens = _tokens(expression)
    conditions = []
    for part in _split(tokens, "or"):
        terms = _split(part, "and")
        bounds = [_bound(term, expression, measures) for term in terms if term != [SIGNIFICANT]]
        conditions.append(_All(bounds, [SIGNIFICANT] in terms))
    return conditions


def _bound(term: list[str], expression: str, measures: Mapping[str, Sequence[Measure]]) -> _Bound:
    if len(term) != 3 or term[1] not in _COMPARE:
        raise InputError(
            f"--fail-on '{expression}': '{' '.join(term)}' is not METRIC > NUMBER, METRIC < NUMBER "
            f"(a per cent with %) or '{SIGNIFICANT}', joined by 'and' and 'or'"
        )
    metric, compare, number = term
    if metric not in measures:
        known = ", ".join(list(measures)[:20]) + (", ..." if len(measures) > 20 else "")
        raise InputError(f"--fail-on '{expression}': no metric '{metric}' here; there are {known}")
    try:
        return _Bound(metric, compare, float(number.rstrip("%")), number.endswith("%"))
    except ValueError:
        raise InputError(f"--fail-on '{expression}': '{number}' is not a number") from None


def _tokens(expression: str) -> list[str]:
    tokens, at = [], 0
    while expression[at:].strip():
        match = _TOKEN.match(expression, at)
        if match is None:
            raise InputError(f"--fail-on '{expression}': cannot read '{expression[at:].strip()}'")
        tokens.append(match[1])
        at = match.end()
    return tokens


def _split(tokens: list[str], word: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == word:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
