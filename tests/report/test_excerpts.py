"""What a long recording is reduced to: whole steps of its middle, said where it is shown."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.model import MoEModel
from moeprof.report import contents as gathering
from moeprof.report import policies
from moeprof.report.contents import STAGES, gather_report
from moeprof.report.excerpts import middle_steps
from moeprof.report.html import render_html
from moeprof.trace import Phase, Trace, synthesize_rows


@pytest.fixture(scope="module")
def trace(model: MoEModel) -> Trace:
    """Prompts of 15 tokens as one step each, and decode steps of one token."""
    return Trace.in_memory(model, *synthesize_rows(model, 900, seed=3, requests=30))


@given(wanted=st.integers(1, 1000), decode=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_middle_is_whole_steps_with_as_many_tokens(
    trace: Trace, wanted: int, decode: bool
) -> None:
    phase = Phase.DECODE if decode else None
    part = middle_steps(trace, phase, wanted)
    counted = np.isin(trace.phase, [phase] if decode else list(Phase))
    largest = np.unique(trace.step, return_counts=True)[1].max()
    inside = np.isin(trace.step, part.step)
    assert inside.sum() == part.tokens  # no step is cut
    assert np.array_equal(part.request, trace.request[inside])
    kept = int(counted[inside].sum())
    if part is not trace:
        assert abs(kept - wanted) <= largest
        before = counted[: inside.argmax()].sum()
        after = counted.sum() - kept - before
        assert abs(int(before) - int(after)) <= 2 * largest
    for layer in trace.layers:
        assert np.array_equal(part.experts(layer), trace.experts(layer)[inside])


def test_an_excerpt_reads_as_the_rows_it_is_of(trace: Trace) -> None:
    part = trace.excerpt(100, 250)
    assert part.tokens == 150
    assert np.array_equal(part.position, trace.position[100:250])
    assert np.array_equal(part.recorded(trace.layers[0]), trace.recorded(trace.layers[0])[100:250])
    assert trace.excerpt(0, trace.tokens).tokens == trace.tokens
    assert trace.excerpt(5, 5).tokens == 0


def test_what_is_reduced_says_so(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "FOLLOWED", 300 * len(trace.layers))
    monkeypatch.setattr(policies, "REPLAYED", 100 * len(trace.layers))
    entered: list[str] = []

    def stage(title: str) -> nullcontext[None]:
        entered.append(title)
        return nullcontext()

    contents = gather_report(trace, stage=stage)
    assert len(entered) == STAGES
    assert contents.locality and contents.layer_curve
    assert contents.info.tokens == 900
    assert 250 < contents.followed_tokens < 350
    replayed = next(iter(contents.policies.values()))
    assert replayed.tokens < 80
    page = render_html(contents)
    said = f"Of the 900 tokens of the recording, the {contents.followed_tokens} in its middle"
    assert page.count(said) == 2
    assert "hold about 100 of them are replayed" in page
