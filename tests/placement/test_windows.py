"""The window that a placement is fitted on, and the other one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.placement.windows import split_windows
from moeprof.trace import Request, TokenRows, Trace, open_trace, synthesize_rows
from tests.conftest import small_config
from tests.recordings import SHIPPED


def made_up(requests: int, tokens: int = 120, seed: int = 0) -> Trace:
    model = MoEModel.from_config(small_config())
    return Trace.in_memory(model, *synthesize_rows(model, tokens, requests=requests, seed=seed))


def slow_load(trace: Trace, keep: np.ndarray) -> np.ndarray:
    counts = np.zeros((len(trace.layers), trace.experts_per_layer), np.int64)
    for row, layer in enumerate(trace.layers):
        for expert in trace.experts(layer)[keep].ravel().tolist():
            counts[row, expert] += 1
    return counts


@given(by=st.sampled_from(["time", "request"]), fit=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_windows_divide_the_tokens_and_their_loads(by: str, fit: float, seed: int) -> None:
    trace = made_up(7, seed=seed)
    windows = split_windows(trace, by=by, fit=fit, seed=seed)
    assert windows.fit is not None and windows.test is not None
    assert (windows.fit ^ windows.test).all()
    assert windows.fit.any() and windows.test.any()
    np.testing.assert_array_equal(windows.fit_load, slow_load(trace, windows.fit))
    np.testing.assert_array_equal(windows.test_load, slow_load(trace, windows.test))


@given(fit=st.floats(0.01, 0.99))
def test_time_judges_on_later_steps(fit: float) -> None:
    trace = made_up(4)
    windows = split_windows(trace, by="time", fit=fit)
    assert trace.step[windows.fit].max() < trace.step[windows.test].min()


def test_requests_are_whole_and_the_mix_is_kept() -> None:
    model = MoEModel.from_config(small_config())
    rows, _ = synthesize_rows(model, 400, requests=40)
    requests = [Request(i, "json" if i < 30 else "html") for i in range(40)]
    trace = Trace.in_memory(model, rows, requests)
    windows = split_windows(trace, by="request", fit=0.5, seed=3)
    fit = set(trace.request[windows.fit].tolist())
    assert not fit & set(trace.request[windows.test].tolist())
    assert len([i for i in fit if i < 30]) == 15
    assert len([i for i in fit if i >= 30]) == 5
    other = split_windows(trace, by="request", fit=0.5, seed=4)
    assert (windows.fit != other.fit).any()


def test_a_third_of_the_shipped_recording_is_about_a_third() -> None:
    trace = open_trace(SHIPPED)
    windows = split_windows(trace, fit=1 / 3)
    assert windows.fit is not None
    assert abs(windows.fit.mean() - 1 / 3) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "space"}, "split 'space' is not one of time, request"),
        ({"fit": 0.0}, "fit = 0.0: a share between 0 and 1"),
        ({"fit": 1.0}, "between 0 and 1"),
        ({"fit": float("nan")}, "between 0 and 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_windows(made_up(3), **options)  # type: ignore[arg-type]


def test_what_cannot_be_divided_says_so() -> None:
    with pytest.raises(InputError, match="one request, which cannot be divided: split by time"):
        split_windows(made_up(1), by="request")
    model = MoEModel.from_config(small_config())
    rows, requests = synthesize_rows(model, 8, requests=2)
    one = TokenRows(**{**vars(rows), "step": np.zeros(8, np.int64)})
    with pytest.raises(InputError, match="is one step, which time does not divide"):
        split_windows(Trace.in_memory(model, one, requests), by="time")
