from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.projection.serving import Request, make_load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,input_len,output_len\n3,1000,10\n5,2000,20\n9,50,5\n")
    return path


def test_a_closed_loop_sends_ten_requests_a_place() -> None:
    load = make_load(concurrency=8, input_len=100, output_len=10)
    assert len(load.requests) == 80
    assert set(load.requests) == {Request(100, 10)}
    assert load.source == "100 + 10 tokens"


def test_an_open_loop_draws_its_times_at_the_rate() -> None:
    load = make_load(rate=5.0, workload_name="rag", num_requests=4000, seed=3)
    times = np.array([r.arrival_s for r in load.requests])
    assert (np.diff(times) > 0).all()
    assert 1 / np.diff(times).mean() == pytest.approx(5.0, rel=0.05)
    assert np.diff(times).std() == pytest.approx(np.diff(times).mean(), rel=0.05)
    assert load.workload is not None and load.workload.name == "rag"


def test_a_file_keeps_its_times_or_takes_others(file: Path) -> None:
    stated = make_load(requests_file=file)
    assert [r.arrival_s for r in stated.requests] == [0, 2, 6]
    assert make_load(requests_file=file, concurrency=2).concurrency == 2
    drawn = make_load(requests_file=file, rate=1.0)
    assert [r.input_len for r in drawn.requests] == [1000, 2000, 50]
    assert [r.arrival_s for r in drawn.requests] != [0, 2, 6]
    assert len(make_load(requests_file=file, num_requests=2).requests) == 2


def test_limits_and_hits_hold_for_every_source(file: Path) -> None:
    for lengths in ({"requests_file": file}, {"workload_name": "coding-agent"}):
        options: dict[str, Any] = {"rate": 1.0, "longest": 800, "hit_ratio": 0.5, "num_requests": 3}
        for request in make_load(**options, **lengths).requests:
            assert request.input_len + request.output_len <= 800
    cold = make_load(rate=1.0, workload_name="rag", hit_ratio=0.0, num_requests=9)
    assert not any(r.cached_len for r in cold.requests)
    whole = make_load(concurrency=1, input_len=10, output_len=2, hit_ratio=1.0)
    assert {r.cached_len for r in whole.requests} == {9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 1, "rate": 1.0}, "a concurrency or a rate, not both"),
        ({"concurrency": 1}, "say how long requests are"),
        ({"input_len": 5, "output_len": 5}, "say when requests come"),
        ({"workload_name": "chat", "input_len": 5, "rate": 1.0}, "workload chat has its own"),
        ({"workload_name": "chat", "rate": -1.0}, "rate of -1"),
        ({"workload_name": "chat", "rate": 1.0, "num_requests": 0}, "0 requests"),
        ({"concurrency": 1, "input_len": 5, "output_len": 5, "hit_ratio": 1.5}, "hit_ratio is 1.5"),
        ({"concurrency": -1, "input_len": 5, "output_len": 5}, "at least 1"),
        ({"concurrency": 1, "input_len": 5, "output_len": 5, "longest": 1}, "at least 2"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_load(**options)


def test_a_file_has_its_own_lengths(file: Path) -> None:
    with pytest.raises(InputError, match="a file of requests has its own lengths"):
        make_load(requests_file=file, workload_name="chat")
