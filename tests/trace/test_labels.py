"""Labels by their first parts."""

from __future__ import annotations

import pytest

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Request, Trace, shorten_labels, synthesize_rows


def test_labels_are_cut_and_the_trace_that_was_given_is_not(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 40, requests=4)
    labels = ["a/x/1", "a/y", "b", None]
    trace = Trace.in_memory(model, rows, [Request(i, name) for i, name in enumerate(labels)])
    assert len(set(trace.label_code)) == 4
    shortened = shorten_labels(trace, 1)
    assert shortened.labels == ("a", "b")
    assert shorten_labels(trace, 2).labels == ("a/x", "a/y", "b")
    assert shortened.label_code.tolist() == [[0, 0, 1, -1][i] for i in trace.request]
    assert trace.labels == ("a/x/1", "a/y", "b")


def test_no_part_of_a_label_is_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match="label parts = 0"):
        shorten_labels(trace, 0)
