"""A number that knows its unit and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from moeprof.errors import InputError


class Provenance(StrEnum):
    """Where a number comes from, strongest first. A sum is as good as its weakest term."""

    MEASURED = "measured"  # observed on the thing itself
    FITTED = "fitted"  # from a law fitted to measurements
    SPECIFIED = "specified"  # stated by a configuration, a datasheet or a definition
    ASSUMED = "assumed"  # nobody measured or stated it for this case

    @property
    def rank(self) -> int:
        """0 for the strongest provenance."""
        return list(Provenance).index(self)


_EXACT = (Provenance.MEASURED, Provenance.SPECIFIED)  # where no band is given


@dataclass(frozen=True)
class Quantity:
    """A value with unit, provenance, and the band it is believed to lie in.

    A measured or specified value without a band is exact; a fitted or assumed one without a band
    has an unknown one, None. `source` names the evidence.
    """

    value: float
    unit: str
    provenance: Provenance
    low: float | None = None
    high: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise InputError(f"quantity {self.value} {self.unit} has one end of a band only")
        if self.low is None and self.provenance in _EXACT:
            object.__setattr__(self, "low", self.value)
            object.__setattr__(self, "high", self.value)
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if not low <= self.value <= high:  # also false for NaN
            raise InputError(f"quantity {self.value} {self.unit} lies outside [{low}, {high}]")

    def __add__(self, other: Quantity) -> Quantity:
        return total([self, other])


def total(terms: Iterable[Quantity]) -> Quantity:
    """Sum of quantities of one unit: bands add, one unknown band makes the sum's unknown, and the
    weakest provenance wins.

    Raises InputError on no terms or on mixed units.
    """
    terms = list(terms)
    units = {term.unit for term in terms}
    if len(units) != 1:
        raise InputError(f"cannot add quantities with units {sorted(units)}")
    return Quantity(
        value=sum(term.value for term in terms),
        unit=units.pop(),
        provenance=max((term.provenance for term in terms), key=lambda p: p.rank),
        low=_sum_known([term.low for term in terms]),
        high=_sum_known([term.high for term in terms]),
        source="; ".join(dict.fromkeys(term.source for term in terms if term.source)),
    )


def _sum_known(ends: list[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return sum(known) if len(known) == len(ends) else None
