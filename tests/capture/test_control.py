"""Switching a running server: the client against the real control, and against strange servers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.control import capture_status, start_capture, stop_capture
from moeprof.capture.vllm.endpoint_access import Access
from moeprof.errors import InputError, MoeprofError
from tests.capture.server.sockets import Request, send, serving
from tests.capture.vllm.fake_server import FakeRank, FakeRanks, serving_ranks


def test_a_recording_from_start_to_stop(tmp_path: Path) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(dp=1))
    with serving_ranks(ranks) as server:
        assert not capture_status(server.url).recording
        started = start_capture(
            server.url,
            tmp_path / "t",
            max_bytes=5 << 20,
            duration_s=60,
            sample_requests=0.5,
            seed=4,
        )
        assert started.recording and started.path == str(tmp_path / "t")
        for rank in ranks.ranks:
            rank.tokens = 30
        stopped = stop_capture(server.url)
    assert (stopped.recording, stopped.tokens, stopped.dropped) == (False, 60, 4)
    assert stopped.dropped_by_reason == {"queue full": 4} and len(stopped.writing) == 2
    assert stopped.prefill_tokens + stopped.decode_tokens == 60
    sent = server.seen[1].json()
    assert (sent["max_bytes"], sent["duration_s"], sent["seed"]) == (5 << 20, 60, 4)


def test_a_path_on_this_machine_is_seen_from_here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with serving_ranks(FakeRanks()) as server:
        assert start_capture(server.url, "t").path == os.fspath(tmp_path / "t")


def test_the_token_goes_along(tmp_path: Path) -> None:
    with serving_ranks(FakeRanks(), Access(token="s3cret")) as server:
        for token in (None, "wrong"):
            with pytest.raises(MoeprofError, match="MOEPROF_TOKEN") as caught:
                capture_status(server.url, token=token)
            assert "s3cret" not in str(caught.value) and "wrong" not in str(caught.value)
        assert start_capture(server.url, tmp_path / "t", token="s3cret").recording


def test_what_the_server_refuses_is_one_line(tmp_path: Path) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(dp=1))
    with serving_ranks(ranks) as server:
        with pytest.raises(MoeprofError, match="nothing is being recorded") as nothing:
            stop_capture(server.url)
        start_capture(server.url, tmp_path / "t")
        with pytest.raises(MoeprofError, match="recording already") as twice:
            start_capture(server.url, tmp_path / "u")
        stop_capture(server.url)
        ranks.ranks[1].refuses = "no space left"
        with pytest.raises(MoeprofError, match="dp01-pp00-tp00: no space left") as partly:
            start_capture(server.url, tmp_path / "v")
    for error in (nothing, twice, partly):
        assert error.value.exit_code == 1 and "\n" not in str(error.value)


def test_options_that_cannot_be_are_not_sent(tmp_path: Path) -> None:
    with serving_ranks(FakeRanks()) as server:
        for wrong in ({"rotate": True}, {"request_names": "x"}, {"sample_requests": 2.0}):
            with pytest.raises(InputError):
                start_capture(server.url, tmp_path / "t", **wrong)  # type: ignore[arg-type]
        assert server.seen == []


def test_a_server_without_the_plugin_says_how_to_get_it() -> None:
    def answer(request: Request, connection: socket.socket) -> None:
        send(connection, {"detail": "Not Found"}, "404 Not Found")

    with serving(answer) as server, pytest.raises(MoeprofError, match="capture vllm"):
        capture_status(server.url)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        "<html>",
        {"recording": "yes", "tokens": 1, "ranks": []},
        {"recording": True, "tokens": -1, "ranks": []},
        {"recording": True, "tokens": 1, "ranks": [1]},
        {"recording": True, "tokens": 1, "ranks": [], "dropped": {"a": "b"}},
        {"recording": True, "tokens": 1, "ranks": [], "dropped": 3},
        {"recording": True, "tokens": 1, "ranks": [{"layers": 3}]},
        {"recording": True, "tokens": 1, "ranks": [{"layers": [[]]}]},
        {"recording": True, "tokens": 1, "ranks": [{"writes": "no", "model": 3}]},
        {"error": {"deep": [[[]]]}},
    ],
)
def test_an_answer_of_something_else_is_one_line(body: Any) -> None:
    def answer(request: Request, connection: socket.socket) -> None:
        send(connection, body)

    with serving(answer) as server, pytest.raises(MoeprofError) as caught:
        capture_status(server.url)
    assert server.url in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_left() -> None:
    def answer(request: Request, connection: socket.socket) -> None:
        server.closing.wait(5)

    with serving(answer) as server, pytest.raises(MoeprofError, match=r"0\.2 s"):
        capture_status(server.url, timeout_s=0.2)
