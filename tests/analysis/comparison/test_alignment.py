"""Experts with other ids are matched again, and what is not there is not found."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from moeprof.analysis.comparison import compare_traces
from moeprof.analysis.comparison.alignment import best_matching
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Trace, synthesize_rows
from tests.analysis.comparison.test_compare import experts_of, with_experts


@pytest.fixture
def renamed(model: MoEModel) -> tuple[Trace, Trace, list[list[int]]]:
    """A recording, the same under other ids in each layer, and the new id of each expert."""
    trace = Trace.in_memory(model, *synthesize_rows(model, 3000, requests=30, skew=1.0))
    rng = np.random.default_rng(0)
    names = [rng.permutation(16) for _ in trace.layers]
    experts = np.stack(
        [name[trace.experts(layer)] for name, layer in zip(names, trace.layers, strict=True)],
        axis=1,
    )
    return trace, with_experts(trace, experts), [name.tolist() for name in names]


def test_same_tokens_give_the_permutation_back(
    renamed: tuple[Trace, Trace, list[list[int]]],
) -> None:
    a, b, names = renamed
    alignment = compare_traces(a, b, same_tokens=True, align=True).alignment
    assert alignment is not None
    assert [layer.experts_of_b for layer in alignment.per_layer] == names
    assert alignment.matched == alignment.fitted == 1
    assert alignment.as_they_are < 0.5 and alignment.null < 0.6
    assert alignment.moved > 0.8


def test_itself_is_matched_to_itself(trace: Trace) -> None:
    alignment = compare_traces(trace, trace, same_tokens=True, align=True).alignment
    assert alignment is not None and alignment.moved == 0
    assert alignment.as_they_are == alignment.matched == 1


def test_strangers_are_no_better_matched_than_shuffled(model: MoEModel) -> None:
    one, other = (
        Trace.in_memory(model, *synthesize_rows(model, 3000, requests=30, labels=("x",), seed=s))
        for s in (1, 2)
    )
    alignment = compare_traces(one, other, same_tokens=True, align=True).alignment
    assert alignment is not None
    assert alignment.matched == pytest.approx(alignment.null, abs=0.03)
    assert alignment.fitted > alignment.matched  # the optimism of a best matching


def test_labels_match_experts_of_other_requests(model: MoEModel) -> None:
    labels = ("a", "b", "c", "d")
    rows, requests = synthesize_rows(model, 8000, requests=80, labels=labels, skew=1.0)
    whole = Trace.in_memory(model, rows, requests)
    name = np.random.default_rng(0).permutation(16)
    other = with_experts(whole, name[experts_of(whole)])
    later = [type(r)(r.index + 100, r.label) for r in other.requests]
    (moved,) = other.rows()
    strange = type(moved)(**{**vars(moved), "request": moved.request + 100})
    alignment = compare_traces(whole, Trace.in_memory(model, strange, later), align=True).alignment
    assert alignment is not None and alignment.by == "their loads on 4 labels"
    right = np.mean([np.array(x.experts_of_b) == name for x in alignment.per_layer])
    assert right > 0.9
    assert alignment.matched > 0.9 > alignment.null > alignment.as_they_are


def test_nothing_to_align_by_is_refused(model: MoEModel) -> None:
    one, other = (
        Trace.in_memory(model, *synthesize_rows(model, 300, requests=n, labels=("x",)))
        for n in (3, 5)
    )
    with pytest.raises(InputError, match="by tokens or by at least two labels"):
        compare_traces(one, other, align=True)


def test_the_best_matching_is_the_best_of_all() -> None:
    gain = np.random.default_rng(0).integers(0, 100, (5, 5))
    best = max(sum(gain[range(5), order]) for order in map(list, permutations(range(5))))
    assert gain[np.arange(5), best_matching(gain)].sum() == best
