"""The client against real sockets that behave badly: one error, in time, in one line."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import Callable

import pytest

from moeprof.capture.http import HttpClient, HttpError, is_loopback
from moeprof.errors import InputError

from .sockets import Request, send, serving


def error_of(call: Callable[[], object]) -> HttpError:
    with pytest.raises(HttpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_json_goes_there_and_back_with_the_token_in_its_header() -> None:
    def echo(request: Request, connection: socket.socket) -> None:
        send(connection, {"method": request.method, "path": request.path, "body": request.json()})

    with serving(echo) as server, HttpClient(server.url + "/base/", token="s3cret") as client:
        answer = client.post("/x?y=1", {"text": "ß\ud800"})
        assert answer == {"method": "POST", "path": "/base/x?y=1", "body": {"text": "ß\ud800"}}
        assert server.seen[0].headers["authorization"] == "Bearer s3cret"


def test_gzip_is_read_and_counts_as_what_it_becomes() -> None:
    def answer(request: Request, connection: socket.socket) -> None:
        size = 100 if request.path == "/small" else 50 << 20
        packed = gzip.compress(b'"' + b"a" * size + b'"', 1)
        send(connection, packed, headers={"content-encoding": "gzip"})

    with serving(answer) as server, HttpClient(server.url, max_bytes=1 << 20) as client:
        assert client.get("/small") == "a" * 100
        error = error_of(lambda: client.get("/bomb"))
    assert "larger than 1,048,576 bytes" in str(error)


def test_an_announced_size_above_the_cap_is_not_read() -> None:
    def answer(request: Request, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n")
        time.sleep(5)

    with serving(answer) as server, HttpClient(server.url) as client:
        started = time.monotonic()
        assert "larger than" in str(error_of(lambda: client.get("/")))
        assert time.monotonic() - started < 4


def silent(connection: socket.socket) -> None:
    time.sleep(1)


def drips_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        time.sleep(0.05)


def drips_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\na\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize("behaviour", [silent, drips_headers, drips_body])
def test_the_deadline_is_for_the_whole_call(behaviour: Callable[[socket.socket], None]) -> None:
    with (
        serving(lambda _, connection: behaviour(connection)) as server,
        HttpClient(server.url, timeout_s=0.3) as client,
    ):
        error = error_of(lambda: client.get("/"))
    assert "no whole answer within 0.3 s" in str(error)
    assert server.url in str(error) and not error.unsent


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"", "the connection broke"),
        (b"nonsense\r\n\r\n", "the connection broke"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", "the connection broke"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{]}", "no JSON"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nNaN", "no JSON"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe", "no JSON"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n" + b"[" * 99999, "no JSON"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
            "compression that was not asked for",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
            "broken compression",
        ),
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://user:pw@elsewhere.example/x\r\n"
            b"content-length: 0\r\n\r\n",
            "redirects to http://elsewhere.example/x; redirects are not followed",
        ),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "HTTP 500"),
        (
            b'HTTP/1.1 400 Bad\r\ncontent-length: 99\r\n\r\n{"error": {"mess',
            "HTTP 400",
        ),
    ],
)
def test_broken_answers_are_one_line(sent: bytes, says: str) -> None:
    with (
        serving(lambda _, connection: connection.sendall(sent)) as server,
        HttpClient(server.url, timeout_s=5) as client,
    ):
        error = error_of(lambda: client.get("/"))
    assert says in str(error) and "pw" not in str(error)


@pytest.mark.parametrize(
    "body",
    [
        '{"error": {"message": "context\\n is 4,096"}}',
        '{"message": "context is 4,096"}',
        '{"detail": "context is 4,096"}',
    ],
)
def test_the_servers_own_words_are_passed_on_in_one_line(body: str) -> None:
    with (
        serving(lambda _, connection: send(connection, body, "400 Bad Request")) as server,
        HttpClient(server.url) as client,
    ):
        error = error_of(lambda: client.post("/", {}))
    assert error.said == "context is 4,096" and error.said in str(error)
    assert error.status == 400 and error.kind == "HTTP 400"


def test_a_busy_or_absent_server_can_be_asked_again() -> None:
    with (
        serving(lambda _, connection: send(connection, "", "503 Unavailable")) as server,
        HttpClient(server.url) as client,
    ):
        assert error_of(lambda: client.get("/")).unsent
    with HttpClient(server.url) as client:
        error = error_of(lambda: client.get("/"))
    assert error.unsent and "is the server running there?" in str(error)


def test_it_works_inside_of_a_running_event_loop() -> None:
    async def notebook() -> object:
        with HttpClient(server.url) as client:
            return client.get("/")

    with serving(lambda _, connection: send(connection, [1])) as server:
        assert asyncio.run(notebook()) == [1]


def test_closing_ends_what_runs() -> None:
    with serving(lambda _, connection: silent(connection)) as server:
        client = HttpClient(server.url)
        waiting = client.start("GET", "/")
        client.close()
        assert waiting.cancelled()


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x", "http://", "http://u:p@h", "http://h/?a=b", "http://h:x"],
)
def test_what_is_no_address_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InputError) as caught:
        HttpClient(url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nx: y", "ü"])
def test_a_token_that_no_header_carries_is_refused_unquoted(token: str) -> None:
    with pytest.raises(InputError, match="the token is empty or holds"):
        HttpClient("http://localhost:1", token=token)


def test_loopback() -> None:
    loops = ["http://localhost:1", "http://127.3.2.1", "http://[::1]:8000"]
    assert all(map(is_loopback, loops))
    assert not is_loopback("http://10.0.0.1") and not is_loopback("http://localhost.example")
