"""Ranks that say what workers of vLLM would, and a server that speaks the control protocol.

The server is the real control behind a plain socket; only the ranks are made up.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from moeprof.capture.vllm.endpoint_access import Access, Caller
from moeprof.capture.vllm.endpoint_control import ROUTES, ControlRequest, RecordingControl
from tests.capture.server.sockets import Request, SocketServer, send, serving


class FakeRank:
    """One worker: it records or does not. `refuses` is what it says to a start."""

    def __init__(
        self, dp: int = 0, tp: int = 0, refuses: str = "", writes: bool = True, pp: int = 0
    ) -> None:
        self.rank = {"dp": dp, "pp": pp, "tp": tp}
        self.writes = writes
        self.refuses = refuses
        self.stuck = False  # does not stop
        self.recording = False
        self.closing = 0  # how often it is asked before all is written
        self.path: str | None = None
        self.tokens = 0
        self.options: dict[str, Any] = {}

    def answer(self, action: str, options: dict[str, Any]) -> dict[str, Any]:
        self.options = options
        if action == "start" and self.refuses:
            return {**self.status(), "error": self.refuses}
        if action == "start":
            self.recording, self.path, self.tokens = self.writes, options["output"], 0
        if action == "stop":
            self.recording = self.recording and self.stuck
        self.closing = max(0, self.closing - 1)
        rows = {"rows": "QVJST1cx"} if action == "recent" else {}
        return {**self.status(), **rows}

    def status(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "writes": self.writes,
            "recording": self.recording,
            "closing": not self.recording and self.closing > 0,
            "path": self.path,
            "tokens": self.tokens,
            "prefill_tokens": self.tokens // 3,
            "decode_tokens": self.tokens - self.tokens // 3,
            "steps": self.tokens // 10,
            "dropped": {"queue full": 2} if self.tokens else {},
            "sampled_out": 0,
            "rotated": 0,
            "pending_bytes": 0,
            "seconds": 1.5,
            "error": None,
            "model": "qwen3_moe",
            "layers": [1, 2, 3],
            "experts": 8,
            "top_k": 2,
            "engine": "vllm",
            "engine_version": "0.32.0",
        }


class FakeRanks:
    """All workers of a server. `asked` is every action that reached them, in order."""

    def __init__(self, *ranks: FakeRank) -> None:
        self.ranks = list(ranks) or [FakeRank()]
        self.asked: list[str] = []
        self.delay_s = 0.0

    async def call(self, action: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(action)
        await asyncio.sleep(self.delay_s)
        return [rank.answer(action, options) for rank in self.ranks]


@contextmanager
def serving_ranks(ranks: FakeRanks, access: Access | None = None) -> Iterator[SocketServer]:
    """A server that controls `ranks`, at `.url`."""
    loop = asyncio.new_event_loop()
    control = RecordingControl(ranks.call, access or Access())

    def answer(request: Request, connection: socket.socket) -> None:
        parts = urlsplit(request.path)
        if ROUTES.get(parts.path) != request.method:
            return send(connection, "no such route", "404 Not Found")
        caller, query = Caller("127.0.0.1", request.headers), dict(parse_qsl(parts.query))
        asked = ControlRequest(parts.path, caller, request.body, query)
        done = asyncio.run_coroutine_threadsafe(control.answer(asked), loop).result()
        send(connection, done.body, f"{done.status} Status")

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with serving(answer) as server:
            yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
