"""The stated error of a sample is how far samples do lie apart, on a population that is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from moeprof.analysis import SamplingError, sampling_error
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, synthesize_rows
from moeprof.trace.schema import Sampling

RATE, SAMPLES, REQUESTS = 0.25, 400, 600


@pytest.fixture(scope="module")
def population(model: MoEModel) -> TokenRows:
    """Requests of 1 to some 100 tokens, each with its own few experts: far from independent."""
    rng = np.random.default_rng(1)
    lengths = np.maximum(1, rng.lognormal(2.3, 0.6, REQUESTS)).astype(int)
    request = np.repeat(np.arange(REQUESTS, dtype=np.int32), lengths)
    rows, _ = synthesize_rows(model, len(request), requests=1)
    taste = rng.normal(0, 1.5, (REQUESTS, 3, 16)) + rng.normal(0, 1, (3, 16))
    scores = taste[request] + rng.gumbel(size=(len(request), 3, 16))
    experts = np.argsort(-scores, axis=2)[:, :, :3].astype(np.uint8)
    return replace(rows, request=request, experts=experts)


def sample(model: MoEModel, rows: TokenRows, kept: NDArray[np.bool_], rate: float) -> Trace:
    mask = kept[rows.request]
    arrays = {k: v[mask] for k, v in vars(rows).items() if v is not None}
    trace = Trace.in_memory(model, replace(rows, **arrays))
    trace.manifest.sampling = Sampling(rate=rate, seed=0)
    return trace


def shares(rows: TokenRows) -> NDArray[np.float64]:
    counts = [np.bincount(rows.experts[:, n].ravel(), minlength=16) for n in range(3)]
    return np.array(counts) / rows.experts[:, 0].size


@pytest.fixture(scope="module")
def drawn(model: MoEModel, population: TokenRows) -> list[tuple[Trace, SamplingError]]:
    """Many samples of the population, and what is said of each."""
    rng = np.random.default_rng(2)
    draws = rng.random((SAMPLES, REQUESTS)) < RATE
    traces = [sample(model, population, kept, RATE) for kept in draws]
    return [(trace, sampling_error(trace)) for trace in traces]


def test_the_total_is_unbiased_and_its_error_is_the_spread(
    population: TokenRows, drawn: list[tuple[Trace, SamplingError]]
) -> None:
    totals = np.array([error.estimated_tokens for _, error in drawn])
    spread = totals.std(ddof=1)
    assert abs(totals.mean() - len(population)) < 3 * spread / np.sqrt(SAMPLES)
    variances = [(error.tokens_error * error.estimated_tokens) ** 2 for _, error in drawn]
    assert np.sqrt(np.mean(variances)) == pytest.approx(spread, rel=0.1)
    lengths = np.bincount(population.request)
    exact = np.sqrt((1 - RATE) / RATE * (lengths**2).sum())  # the variance that is estimated
    assert np.sqrt(np.mean(variances)) == pytest.approx(exact, rel=0.02)
    inside = [
        abs(error.estimated_tokens - len(population)) < 1.96 * np.sqrt(variance)
        for (_, error), variance in zip(drawn, variances, strict=True)
    ]
    assert 0.92 < np.mean(inside) < 0.98, "of the 95 % intervals"


def test_shares_are_unbiased_and_their_errors_are_the_spread(
    population: TokenRows, drawn: list[tuple[Trace, SamplingError]]
) -> None:
    truth = shares(population)
    found = np.array([shares(next(trace.rows())) for trace, _ in drawn])
    spread = found.std(axis=0, ddof=1)
    bias = 0.05 * spread  # a ratio's, of order 1 / requests
    assert (abs(found.mean(axis=0) - truth) < 4 * spread / np.sqrt(SAMPLES) + bias).all()
    stated = np.sqrt(np.mean([error.share_error**2 for _, error in drawn], axis=0))
    ratio = stated / spread
    assert ratio.mean() == pytest.approx(1, abs=0.06)
    assert ((ratio > 0.8) & (ratio < 1.2)).all(), ratio


def test_tokens_taken_for_independent_would_promise_far_too_much(
    population: TokenRows, drawn: list[tuple[Trace, SamplingError]]
) -> None:
    truth = shares(population)
    assignments = RATE * len(population) * 3
    naive = np.sqrt((1 - RATE) * truth * (1 - truth) / assignments)
    stated = np.mean([error.share_error for _, error in drawn], axis=0)
    assert np.median(stated / naive) > 2


def test_the_error_of_the_imbalance_is_its_spread_where_one_expert_leads(
    model: MoEModel, population: TokenRows, drawn: list[tuple[Trace, SamplingError]]
) -> None:
    """Where several do, whichever leads is the maximum: it varies less, and leans upwards."""
    eager = np.random.default_rng(3).random(REQUESTS)[population.request]
    led = population.experts.copy()
    led[np.random.default_rng(4).random(len(led)) < eager, :, 0] = 5
    rng = np.random.default_rng(2)
    samples = []
    for kept in rng.random((SAMPLES, REQUESTS)) < RATE:
        trace = sample(model, replace(population, experts=led), kept, RATE)
        samples.append(sampling_error(trace))
    for layer in range(3):
        clear, close = (
            (
                np.std([error.per_layer[layer].imbalance for error in errors], ddof=1),
                np.mean([error.per_layer[layer].imbalance_error for error in errors]),
            )
            for errors in (samples, [error for _, error in drawn])
        )
        assert clear[1] == pytest.approx(clear[0], rel=0.1) and clear[0] > 0.05
        assert close[1] > close[0]


def test_summaries_are_of_the_used_experts(drawn: list[tuple[Trace, SamplingError]]) -> None:
    trace, error = drawn[0]
    relative = error.share_error / shares(next(trace.rows()))
    assert error.mean_share_error == pytest.approx(relative.mean())
    assert error.max_share_error == pytest.approx(relative.max())
    assert [layer.layer for layer in error.per_layer] == [1, 2, 3]
    assert error.per_layer[1].max_share_error == pytest.approx(relative[1].max())
    assert error.requests == len(np.unique(trace.request))
    assert "share_error" not in json.loads(json.dumps(error.to_dict()))


def test_a_share_that_all_requests_have_in_common_has_no_error(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 60, requests=10)
    rows.experts[:] = [1, 2, 3]
    trace = sample(model, rows, np.ones(10, bool), 0.5)
    error = sampling_error(trace)
    assert error.max_share_error == pytest.approx(0, abs=1e-12)
    assert error.per_layer[0].imbalance == pytest.approx(16 / 3)
    assert error.tokens_error == pytest.approx(np.sqrt(0.5 / 10)), "ten requests of one length"


def test_where_every_request_was_kept_there_is_no_error(trace: Trace) -> None:
    error = sampling_error(trace)
    assert (error.rate, error.estimated_tokens) == (1.0, 600.0)
    assert (error.tokens_error, error.max_share_error) == (0.0, 0.0)
    assert not error.share_error.any()


def test_a_layer_without_assignments_is_no_number_of_its_own(model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 60, requests=6)
    recorded = np.ones(rows.experts.shape[:2], bool)
    recorded[:, 1] = False
    trace = sample(model, replace(rows, recorded=recorded), np.ones(6, bool), 0.5)
    error = sampling_error(trace)
    empty = error.per_layer[1]
    assert (empty.mean_share_error, empty.imbalance, empty.imbalance_error) == (0.0, 1.0, 0.0)
    assert np.isfinite(error.share_error).all() and error.mean_share_error > 0


def test_nothing_has_no_error(model: MoEModel, population: TokenRows) -> None:
    with pytest.raises(InputError, match="holds no tokens"):
        sampling_error(sample(model, population, np.zeros(REQUESTS, bool), 0.5))


def test_counts_have_no_requests(tmp_path: object, model: MoEModel) -> None:
    from moeprof.trace import open_trace, write_counts

    path = f"{tmp_path}/t"
    write_counts(path, model, np.ones((1, 3, 16), np.int64))
    with pytest.raises(TraceError, match="counts only"):
        sampling_error(open_trace(path))
