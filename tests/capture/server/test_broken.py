"""Broken and hostile servers: one line says what is off, and what was recorded before is kept."""

from __future__ import annotations

import base64
import errno
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import Prompt
from moeprof.capture.http import HttpError
from moeprof.capture.server import ServerCapture, capture_server
from moeprof.capture.server.asking import Asking
from moeprof.errors import InputError, MoeprofError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, TraceWriter, open_trace, validate_trace
from tests.conftest import small_config

from .engines import MODEL, VllmServer, npy, routing_of
from .sockets import Request, send, serving

TEXTS = ["the first", "the second", "the third"]
PROMPTS = [Prompt(text, place=f"p.txt:{n}") for n, text in enumerate(TEXTS, 1)]
Break = Callable[[socket.socket], None]


def recorded(
    server: Callable[[Request, socket.socket], None], output: Path, **options: Any
) -> ServerCapture:
    options = {"model": MODEL, "timeout_s": 10.0, "retries": 0, "concurrency": 1, **options}
    options.setdefault("max_answer_bytes", 1 << 20)
    options.setdefault("asking", Asking(max_new_tokens=4))
    prompts = options.pop("prompts", PROMPTS)
    with serving(server) as listening:
        return capture_server(listening.url, prompts, output, engine="vllm", **options)


def only_second(broken: Break) -> Callable[[Request, socket.socket], None]:
    """A vLLM server that answers all prompts but the second."""
    good = VllmServer()

    def answer(request: Request, connection: socket.socket) -> None:
        if request.method == "POST" and request.json()["prompt"] == TEXTS[1]:
            broken(connection)
        else:
            good(request, connection)

    return answer


def check_the_others(output: Path, result: ServerCapture, kind: str) -> None:
    """First and third prompt are in the trace, whole; the second is counted under `kind`."""
    assert validate_trace(output).problems == []
    trace = open_trace(output)
    assert set(trace.request.tolist()) == {0, 2} and trace.manifest.complete
    assert trace.tokens == sum(len(TEXTS[n]) + 3 for n in (0, 2))
    (reason,) = result.failed
    assert kind in reason and result.failed[reason] == 1
    assert result.problem is not None and "\n" not in result.problem
    assert result.problem.startswith("p.txt:2: ") and kind in result.problem


def raw(content: bytes) -> Break:
    return lambda connection: connection.sendall(content)


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


def bomb(connection: socket.socket) -> None:
    packed = gzip.compress(b" " * (4 << 20), 1)
    send(connection, packed, headers={"content-encoding": "gzip"})


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (lambda _: time.sleep(3), "no whole answer within 1.5 s"),
        (drip, "no whole answer within 1.5 s"),
        (raw(b""), "the connection broke"),
        (raw(b'HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"choices"'), "the connection broke"),
        (lambda c: send(c, "{"), "no JSON"),
        (lambda c: send(c, '{"usage": NaN}'), "no JSON"),
        (lambda c: send(c, "oops", "500 Internal Server Error"), "HTTP 500"),
        (lambda c: send(c, "", "302 Found", {"location": "http://x/"}), "redirects to http://x/"),
        (bomb, "larger than"),
        (lambda c: send(c, "[]"), "malformed routing"),
        (lambda c: send(c, "3"), "malformed routing"),
        (lambda c: send(c, '{"choices": []}'), "no routing"),
    ],
)
def test_broken_transport(tmp_path: Path, broken: Break, kind: str) -> None:
    timeout_s = 1.5 if "whole answer" in kind else 10.0
    result = recorded(only_second(broken), tmp_path / "t", timeout_s=timeout_s)
    check_the_others(tmp_path / "t", result, kind)


def unrecorded(count: int) -> dict[str, int]:
    return {"not recorded before the end": count}


def pickled() -> str:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return base64.b64encode(file.getvalue()).decode()


def zipped() -> str:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * (1 << 20))
    return base64.b64encode(file.getvalue()).decode()


def claiming(shape: str, dtype: str = "|u1") -> str:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (117 - len(head)) + b"\n"
    return base64.b64encode(b"\x93NUMPY\x01\x00v\x00" + head + b"\1" * 96).decode()


ROWS = routing_of(TEXTS[1], len(TEXTS[1]) + 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("not base64 !", "malformed routing"),
        ("AAAA", "malformed routing"),
        (12, "malformed routing"),
        ([[[1, 2], [3]]], "malformed routing"),
        (pickled(), "malformed routing"),
        (zipped(), "malformed routing"),
        (claiming("(1000000000000, 4, 2)"), "malformed routing"),
        (claiming("(-12, 4, 2)"), "malformed routing"),
        (claiming("(12, 8)"), "malformed routing"),
        (claiming("(" * 400), "malformed routing"),
        (claiming("(12, 4, 2)", "<f8"), "malformed routing"),
        ({"data": "AAAA", "shape": [1 << 40, 4, 2], "dtype": "uint8"}, "malformed routing"),
        ({"data": "AAAA", "shape": [-1, 1, 1], "dtype": "object"}, "malformed routing"),
        ({"data": "AAAA"}, "malformed routing"),
        (npy(np.concatenate([ROWS, ROWS])), "malformed routing"),  # more rows than tokens
        (npy(ROWS + 100), "ids out of range"),
    ],
)
def test_broken_routing(tmp_path: Path, value: Any, kind: str) -> None:
    def change(request: Request, answer: dict[str, Any]) -> None:
        if request.json()["prompt"] == TEXTS[1]:
            answer["choices"][0]["routed_experts"] = value

    result = recorded(VllmServer(change=change), tmp_path / "t")
    check_the_others(tmp_path / "t", result, kind)


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1}, {"prompt_tokens": 1e9}, [], "x"])
def test_broken_usage(tmp_path: Path, usage: Any) -> None:
    def change(request: Request, answer: dict[str, Any]) -> None:
        if request.json()["prompt"] == TEXTS[1]:
            answer["usage"] = usage

    result = recorded(VllmServer(change=change), tmp_path / "t")
    if usage == []:  # as if it said nothing: phases are unknown, the routing is there
        assert result.failed == {} and open_trace(tmp_path / "t").tokens == result.tokens
    else:
        check_the_others(tmp_path / "t", result, "malformed routing")


def test_a_model_that_does_not_fit_ends_it_before_anything_is_written(tmp_path: Path) -> None:
    for config, says in (
        (small_config(layers=7, top_k=2), "it has 4 layers, .* 7, of which 6 are MoE layers"),
        (small_config(top_k=3), "it has 2 experts a token, .* top-3"),
    ):
        with pytest.raises(MoeprofError, match=says):
            recorded(VllmServer(), tmp_path / "t", model=MoEModel.from_config(config))
        assert not (tmp_path / "t").exists()


def test_flags_keys_and_addresses_are_named(tmp_path: Path) -> None:
    with pytest.raises(MoeprofError, match="start the server with --enable-return-routed-experts"):
        recorded(VllmServer(enabled=False), tmp_path / "t")
    with pytest.raises(HttpError, match="HTTP 401; the server says: Unauthorized; it wants"):
        recorded(VllmServer(token="s3cret"), tmp_path / "t")
    assert recorded(VllmServer(token="s3cret"), tmp_path / "t", token="s3cret").requests == 3
    with pytest.raises(HttpError, match="HTTP 404"):
        recorded(lambda _, c: send(c, "", "404 Not Found"), tmp_path / "u")
    with pytest.raises(InputError, match="serves no model"):
        recorded(lambda _, c: send(c, '{"data": [3, {"id": 4}]}'), tmp_path / "u")


def test_no_words_of_a_prompt_are_in_a_message(tmp_path: Path) -> None:
    secret = Prompt("my account number is 12345678", place="p.txt:1")
    message = {"error": {"message": f"cannot parse: {secret.text}", "code": 400}}

    def answer(request: Request, connection: socket.socket) -> None:
        if request.method == "POST":
            send(connection, message, "400 Bad Request")
        else:
            VllmServer()(request, connection)

    with pytest.raises(MoeprofError) as caught:
        recorded(answer, tmp_path / "t", prompts=[secret])
    assert "p.txt:1" in str(caught.value) and "HTTP 400" in str(caught.value)
    assert "account" not in str(caught.value)


def test_ten_failures_in_a_row_end_it(tmp_path: Path) -> None:
    def answer(request: Request, connection: socket.socket) -> None:
        good = request.method == "GET" or request.json()["prompt"] == "0"
        if good:
            VllmServer()(request, connection)
        else:
            send(connection, "", "500 Internal Server Error")

    prompts = [Prompt(str(n)) for n in range(50)]
    for concurrency in (1, 4):
        output = tmp_path / str(concurrency)
        result = recorded(answer, output, prompts=prompts, concurrency=concurrency)
        assert result.requests == 1 and result.failed == {"HTTP 500": 10, **unrecorded(39)}


def test_a_busy_server_is_asked_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    good, times = VllmServer(), {"busy": 0, "broken": 0}

    def answer(request: Request, connection: socket.socket) -> None:
        kind = request.json()["prompt"] if request.method == "POST" else ""
        if kind in times:
            times[kind] += 1
        if kind == "busy" and times[kind] == 1:
            send(connection, "", "503 Service Unavailable")
        elif kind != "broken":
            good(request, connection)

    prompts = [Prompt("busy"), Prompt("broken"), Prompt("fine")]
    result = recorded(answer, tmp_path / "t", prompts=prompts, retries=1)
    assert times == {"busy": 2, "broken": 1} and result.requests == 2


def test_a_full_disk_ends_the_asking_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = TraceWriter.write, []

    def full_after_two(self: TraceWriter, rows: TokenRows) -> bool:
        calls.append(len(rows))
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, rows)

    monkeypatch.setattr(TraceWriter, "write", full_after_two)
    prompts = [Prompt(f"prompt {n}") for n in range(400)]
    result = recorded(VllmServer(), tmp_path / "t", prompts=prompts)
    assert result.problem == (
        "recording stopped: writing the trace failed: No space left on device"
    )
    answers = sum(len(f"prompt {n}") + 3 for n in range(result.requests))
    assert result.requests < 400 and result.tokens + result.dropped == answers
    assert set(open_trace(tmp_path / "t").request.tolist()) == {0, 1}


def test_a_duration_ends_it_while_an_answer_is_waited_for(tmp_path: Path) -> None:
    server = only_second(lambda _: time.sleep(5))
    started = time.monotonic()
    result = recorded(server, tmp_path / "t", duration_s=0.3, timeout_s=60.0, concurrency=2)
    assert time.monotonic() - started < 4
    assert result.requests == 1 and result.failed == unrecorded(2)
    assert open_trace(tmp_path / "t").manifest.complete


def test_ctrl_c_keeps_what_has_come(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config(top_k=2)))
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    third = {"seen": False}
    good = VllmServer()

    def answer(request: Request, connection: socket.socket) -> None:
        text = request.json()["prompt"] if request.method == "POST" else ""
        if text == TEXTS[1]:
            time.sleep(30)
        good(request, connection)
        third["seen"] |= text == TEXTS[2]

    with serving(answer) as server:
        arguments = ["--url", server.url, "--engine", "vllm", "--prompts", str(tmp_path / "p.txt")]
        arguments += ["-o", str(tmp_path / "t"), "--model", str(tmp_path), "--concurrency", "3"]
        running = subprocess.Popen(
            [sys.executable, "-m", "moeprof", "capture", "server", *arguments, "--quiet"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not third["seen"] and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    assert running.returncode == 130 and "Traceback" not in errors
    trace = open_trace(tmp_path / "t")
    assert set(trace.request.tolist()) == {0, 2} and trace.manifest.complete
