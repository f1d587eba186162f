"""Ranks that say what workers of vLLM would, and a server that speaks the control protocol.

The server is the real control behind Python's own HTTP server; only the ranks are made up.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from moeprof.capture.vllm.endpoint_access import Access, Caller
from moeprof.capture.vllm.endpoint_control import ROUTES, ControlRequest, RecordingControl


class FakeRank:
    """One worker: it records or does not. `refuses` is what it says to a start."""

    def __init__(self, dp: int = 0, tp: int = 0, refuses: str = "", writes: bool = True) -> None:
        self.rank = {"dp": dp, "pp": 0, "tp": tp}
        self.writes = writes
        self.refuses = refuses
        self.stuck = False  # does not stop
        self.recording = False
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
        rows = {"rows": "QVJST1cx"} if action == "recent" else {}
        return {**self.status(), **rows}

    def status(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "writes": self.writes,
            "recording": self.recording,
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
def serving(ranks: FakeRanks, access: Access | None = None) -> Iterator[str]:
    """The address of a server that controls `ranks`."""
    loop = asyncio.new_event_loop()
    control = RecordingControl(ranks.call, access or Access())

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            parts = urlsplit(self.path)
            if ROUTES.get(parts.path) != self.command:
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = ControlRequest(
                parts.path,
                Caller(self.client_address[0], headers),
                body,
                dict(parse_qsl(parts.query)),
            )
            done = asyncio.run_coroutine_threadsafe(control.answer(request), loop).result()
            content = json.dumps(done.body).encode()
            self.send_response(done.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _respond  # noqa: N815 (the base class calls them)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threads = [
        threading.Thread(target=loop.run_forever),
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}),
    ]
    for thread in threads:
        thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        loop.call_soon_threadsafe(loop.stop)
        for thread in threads:
            thread.join()
        loop.close()
