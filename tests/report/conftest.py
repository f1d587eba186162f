"""Recordings of every kind that a report must survive, and the contents gathered from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from moeprof.model import MoEModel
from moeprof.report import ReportContents, gather_report
from moeprof.trace import Trace, open_trace, synthesize_rows, write_counts
from tests.analysis.damage import with_foreign_id
from tests.conftest import small_config

HOSTILE = (
    "<script>alert(1)</script>",
    "quo\"te's & <b>",
    "日本語 \u202e\x1b[31m",
    "</style>{{7*7}}",
)


# Results are frozen and gathering takes seconds, so each is gathered once for all tests.
@pytest.fixture(scope="session")
def contents(model: MoEModel) -> ReportContents:
    """Gathered from 600 synthetic tokens, the recorded model being the projected one."""
    trace = Trace.in_memory(model, *synthesize_rows(model, 600, requests=6))
    return gather_report(trace, command="moeprof report run.moetrace")


@pytest.fixture(scope="session")
def hostile(model: MoEModel) -> ReportContents:
    """Labels, a reason of drops and a command that try to break out of their place."""
    rows, requests = synthesize_rows(model, 400, requests=8, labels=HOSTILE)
    trace = Trace.in_memory(model, rows, requests)
    trace.manifest.dropped = {"<img src=x onerror=alert(2)>": 7}
    command = "moeprof report '<b>&' -o \"x\""
    return gather_report(trace, hardware="h200+epyc-9005", command=command)


@pytest.fixture(scope="session")
def counts_only(tmp_path_factory: pytest.TempPathFactory, model: MoEModel) -> Trace:
    """Three windows of counts, without the order of tokens."""
    path = tmp_path_factory.mktemp("counts") / "counts.moetrace"
    counts = np.random.default_rng(0).poisson(9, (3, len(model.moe_layers), model.experts))
    write_counts(path, model, counts)
    return open_trace(path)


def _single(model: MoEModel) -> Trace:
    return Trace.in_memory(model, *synthesize_rows(model, 1, requests=1))


def _empty(model: MoEModel) -> Trace:
    rows, _ = synthesize_rows(model, 1)
    nothing = {
        name: value[:0] for name, value in vars(rows).items() if isinstance(value, np.ndarray)
    }
    return Trace.in_memory(model, replace(rows, **nothing), [])


def _with_holes(model: MoEModel) -> Trace:
    """One layer lacks every third token, another all of them."""
    rows, requests = synthesize_rows(model, 300)
    recorded = np.ones(rows.experts.shape[:2], bool)
    recorded[::3, 1] = False
    recorded[:, 2] = False
    return Trace.in_memory(model, replace(rows, recorded=recorded), requests)


def _without_phase(model: MoEModel) -> Trace:
    rows, _ = synthesize_rows(model, 300)
    return Trace.in_memory(model, replace(rows, phase=None), [])


def _prefill_only(model: MoEModel) -> Trace:
    return Trace.in_memory(model, *synthesize_rows(model, 300, prefill=1.0))


def _without_layers(model: MoEModel) -> Trace:
    """Tokens of which no layer was recorded."""
    rows, requests = synthesize_rows(model, 30)
    nothing = np.zeros(rows.experts.shape[:2], bool)
    return Trace.in_memory(model, replace(rows, recorded=nothing), requests)


def _damaged(model: MoEModel) -> Trace:
    return with_foreign_id()


def _without_tensors(model: MoEModel) -> Trace:
    """Of a model whose tensors could not be counted."""
    unknown = MoEModel.from_config(small_config(), count_tensors=False)
    return Trace.in_memory(unknown, *synthesize_rows(unknown, 200))


ODD: dict[str, Callable[[MoEModel], Trace]] = {
    "single": _single,
    "empty": _empty,
    "holes": _with_holes,
    "no phase": _without_phase,
    "prefill only": _prefill_only,
    "no layers": _without_layers,
    "damaged": _damaged,
    "no tensors": _without_tensors,
}


@pytest.fixture(scope="session")
def gather_odd(model: MoEModel, counts_only: Trace) -> Callable[[str], ReportContents]:
    """A function that gives what is gathered from a recording that lacks something."""

    @cache
    def gather(name: str) -> ReportContents:
        return gather_report(ODD[name](model) if name in ODD else counts_only)

    return gather


@pytest.fixture(params=[*ODD, "counts only"])
def odd(
    request: pytest.FixtureRequest, gather_odd: Callable[[str], ReportContents]
) -> ReportContents:
    """Gathered from each recording that lacks something."""
    return gather_odd(request.param)
