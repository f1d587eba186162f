"""capture start, stop and status as they are typed: exit codes, what is said, where tokens go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.capture.control import capture_status
from moeprof.capture.vllm.endpoint_access import Access
from moeprof.cli.main import main
from moeprof.cli.recordings import read_token, status_text
from tests.capture.server.sockets import send, serving
from tests.capture.vllm.fake_server import FakeRank, FakeRanks, serving_ranks

Captured = pytest.CaptureFixture[str]


def test_start_status_stop(tmp_path: Path, capsys: Captured) -> None:
    ranks, trace = FakeRanks(FakeRank(), FakeRank(dp=1)), str(tmp_path / "t")
    with serving_ranks(ranks) as server:
        url = ["--url", server.url]
        limits = ["--max-size", "10MiB", "--rotate", "--duration", "2m", "--sample-requests", "0.5"]
        names = ["--request-names", "none", "--aggregate", "50", "--token-ids"]
        assert main(["capture", "start", *url, "-o", trace, *limits, *names]) == 0
        said = capsys.readouterr().out
        assert f"recording to {trace}" in said and f"capture stop --url {server.url}" in said
        options = ranks.ranks[1].options
        assert options["max_bytes"] == 10 << 20 and options["duration_s"] == 120
        assert (options["aggregate_steps"], options["request_names"]) == (50, "none")
        for rank in ranks.ranks:
            rank.tokens = 4500
        assert main(["capture", "status", *url, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "moeprof.capture.status/1"
        assert document["result"]["recording"] is True and document["result"]["tokens"] == 9000
        assert main(["capture", "stop", *url]) == 0
        said = capsys.readouterr().out
    for words in ("9,000 tokens", "4 dropped", "2 of 2 ranks write", f"moeprof info {trace}"):
        assert words in said
    assert f"moeprof merge {trace}" in said
    assert all(len(line) <= 160 for line in said.splitlines())


def test_exit_codes(tmp_path: Path, capsys: Captured) -> None:
    trace = str(tmp_path / "t")
    with serving_ranks(FakeRanks()) as server:
        url = ["--url", server.url]
        assert main(["capture", "stop", *url]) == 1
        assert main(["capture", "start", *url, "-o", trace, "--rotate"]) == 2
        assert main(["capture", "start", *url]) == 2
        assert main(["capture", "start", *url, "-o", trace]) == 0
        assert main(["capture", "start", *url, "-o", trace]) == 1
    assert main(["capture", "status", *url]) == 1  # the server is gone
    assert main(["capture", "status", "--url", "not an address"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("moeprof:")]
    assert len(errors) == 5


def test_what_a_server_says_moves_no_cursor_and_runs_no_command() -> None:
    said = {"recording": False, "tokens": 1, "path": "/t\x1b[2J; rm -r ~", "errors": ["a\nb\x07"]}
    with serving(lambda request, connection: send(connection, {**said, "ranks": [{}]})) as server:
        text = status_text(capture_status(server.url))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "moeprof info '/t" in text and "problem: a" in text


def test_where_the_token_comes_from(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    with serving_ranks(FakeRanks(), Access(token="s3cret")) as server:
        status = ["capture", "status", "--url", server.url]
        assert main(status) == 1
        assert main([*status, "--token-file", str(file)]) == 0
        assert "process" not in capsys.readouterr().err
        assert main([*status, "--token", "s3cret"]) == 0
        assert "list of processes" in capsys.readouterr().err
        monkeypatch.setenv("MOEPROF_TOKEN", "s3cret")
        assert main(status) == 0
        assert main([*status, "--token", "a", "--token-file", str(file)]) == 2
        assert main([*status, "--token-file", str(tmp_path / "none")]) == 2
        file.write_text("")
        assert main([*status, "--token-file", str(file)]) == 2
    assert "s3cret" not in "".join(capsys.readouterr())


def test_a_token_that_travels_in_the_clear_is_said(capsys: Captured) -> None:
    assert read_token("t", None, "http://10.0.0.1:8000", quiet=False) == "t"
    assert "unencrypted" in capsys.readouterr().err
    for url in ("http://localhost:1", "https://10.0.0.1"):
        read_token("t", None, url, quiet=False)
        assert "unencrypted" not in capsys.readouterr().err
