"""A sum of quantities is as good as its weakest term."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.quantity import Provenance, Quantity, total

finite = st.floats(-1e12, 1e12)
quantities = st.builds(
    lambda value, below, above, provenance: Quantity(
        value, "bytes", provenance, value - below, value + above
    ),
    finite,
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.sampled_from(list(Provenance)),
)


@given(st.lists(quantities, min_size=1, max_size=6))
def test_bands_add_and_the_weakest_provenance_wins(terms: list[Quantity]) -> None:
    result = total(terms)
    assert result.value == sum(term.value for term in terms)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.value <= result.high
    assert result.provenance.rank == max(term.provenance.rank for term in terms)


def test_units_do_not_mix() -> None:
    with pytest.raises(InputError, match="units"):
        _ = Quantity(1, "s", Provenance.MEASURED) + Quantity(1, "bytes", Provenance.MEASURED)


@pytest.mark.parametrize("low", [2.0, math.nan])
def test_a_value_outside_its_band_is_refused(low: float) -> None:
    with pytest.raises(InputError, match="outside"):
        Quantity(1.0, "s", Provenance.FITTED, low=low, high=3.0)


def test_an_unknown_band_stays_unknown_in_a_sum() -> None:
    exact = Quantity(2, "s", Provenance.SPECIFIED)
    unknown = Quantity(1, "s", Provenance.ASSUMED)
    assert (exact.low, exact.high) == (2, 2)
    assert (unknown.low, unknown.high) == (None, None)
    assert (exact + unknown).low is None
    with pytest.raises(InputError, match="one end"):
        Quantity(1, "s", Provenance.FITTED, low=0)


def test_sources_are_named_once() -> None:
    term = Quantity(1, "s", Provenance.MEASURED, source="here")
    assert (term + term).source == "here"
