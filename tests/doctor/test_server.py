"""What is said of a server: its engine, the plugin, routed experts; also of a strange one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeprof.cli.main import main
from moeprof.doctor import Check
from moeprof.doctor import server as looked_at
from moeprof.doctor.server import check_server
from tests.capture.server.sockets import Request, send, serving

STATUS = {"recording": True, "path": "/t", "tokens": 7, "ranks": [{"error": None}], "errors": []}
VLLM = {"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "m"}]}}
SGLANG = {"/get_server_info": {"version": "0.5.23", "enable_return_routed_experts": True}}
RETURNING = {"/v1/completions": {"choices": [{"routed_experts": "AAAA"}]}}
SILENT = {"/v1/completions": {"choices": [{"text": "b"}]}}


def answering(pages: dict[str, Any]) -> Callable[[Request, socket.socket], None]:
    def answer(request: Request, connection: socket.socket) -> None:
        known = request.path in pages
        send(connection, pages.get(request.path, {}), "200 OK" if known else "404 Not Found")

    return answer


def look(pages: dict[str, Any], token: str | None = None) -> dict[str, Check]:
    with serving(answering(pages)) as server:
        return {check.name: check for check in check_server(server.url, token)}


def test_a_vllm_with_the_plugin() -> None:
    checks = look({**VLLM, **SILENT, "/moeprof/status": STATUS})
    assert checks.keys() == {"server", "server plugin", "routed experts"}
    assert "vLLM 0.32.0" in checks["server"].detail
    assert checks["server plugin"].ok and "recording to /t" in checks["server plugin"].detail
    assert not checks["routed experts"].ok and not checks["routed experts"].needed


def test_a_rank_that_fails_is_named() -> None:
    failing = {**STATUS, "errors": ["dp00-pp00-tp01: disk full"]}
    check = look({**VLLM, **RETURNING, "/moeprof/status": failing})["server plugin"]
    assert not check.ok and "disk full" in check.detail


def test_servers_that_return_routed_experts() -> None:
    for pages in ({**VLLM, **RETURNING}, SGLANG, {"/server_info": SGLANG["/get_server_info"]}):
        checks = look(pages)
        assert checks["routed experts"].ok and "recording" not in checks
        assert not checks["server plugin"].ok


def test_a_server_that_cannot_be_recorded_is_a_failure() -> None:
    for pages in ({**VLLM, **SILENT}, VLLM, {"/get_server_info": {"version": "0.5.23"}}):
        check = look(pages)["recording"]
        assert not check.ok and check.needed and "capture vllm" in check.remedy


@pytest.mark.parametrize(
    "pages",
    [
        {},
        {"/version": "<html>"},
        {"/version": []},
        {"/version": {"version": 3}},
        {"/version": {"version": None}},
    ],
)
def test_something_else_is_said(pages: dict[str, Any]) -> None:
    checks = look(pages)
    assert checks.keys() == {"server"} and checks["server"].needed and not checks["server"].ok


@pytest.mark.parametrize(
    "pages",
    [
        {"/v1/models": []},
        {"/v1/models": {"data": [3]}},
        {"/v1/completions": {"choices": {}}},
        {"/v1/completions": "x"},
        {"/v1/completions": {"choices": [{"routed_experts": 3}]}},
    ],
)
def test_strange_answers_are_no_routed_experts(pages: dict[str, Any]) -> None:
    checks = look({**VLLM, **pages})
    assert not checks["routed experts"].ok and not checks["recording"].ok


def test_a_slow_or_absent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_at, "TIMEOUT_S", 0.1)
    with serving(lambda request, connection: server.closing.wait(5) or None) as server:
        (check,) = check_server(server.url, None)
    assert "0.1 s" in check.detail and check.needed
    (check,) = check_server(server.url, None)
    assert "cannot connect" in check.detail


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(answering({**VLLM, **SILENT, "/moeprof/status": STATUS})) as server:
        code = main(["doctor", "-o", str(tmp_path), "--url", server.url, "--json"])
        document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "moeprof.doctor/1"
    checks = document["result"]["checks"]
    assert all({"name", "ok", "detail"} <= check.keys() for check in checks)
    failed = [check["name"] for check in checks if check["needed"] and not check["ok"]]
    assert failed == document["result"]["failed"] and code == (3 if failed else 0)
    assert {"python", "moeprof", "gpu", "vllm", "disk speed", "server plugin"} <= {
        check["name"] for check in checks
    }
    assert main(["doctor", "-o", "/proc/t"]) == 3
    assert "FAIL  output" in capsys.readouterr().out
    assert main(["doctor", "--url", "no address"]) == 2


def test_nothing_is_left_in_sight_of_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(answering(VLLM)) as server:
        main(["doctor", "--url", server.url, "--token", "s3cret"])
        assert {request.headers.get("authorization") for request in server.seen} == {
            None,
            "Bearer s3cret",
        }
    assert "s3cret" not in "".join(capsys.readouterr())
