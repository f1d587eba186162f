"""A server on this machine that speaks the control protocol: its routes are the plugin's own."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa

from moeprof import MoEModel
from moeprof.capture.vllm.endpoint_access import Access, Caller
from moeprof.capture.vllm.endpoint_control import ControlRequest, RecordingControl
from moeprof.capture.vllm.recent import RecentRows
from moeprof.trace import TokenRows
from moeprof.trace.columns import to_batch
from moeprof.trace.schema import Manifest
from tests.live.rows import part


def told(layers: list[int], experts: int, top_k: int) -> Manifest:
    """What rows are of."""
    return Manifest.make(clock_base=0.0, model={}, layers=layers, experts=experts, top_k=top_k)


def encoded(rows: TokenRows, layers: list[int], experts: int) -> str:
    """Rows as a rank sends them."""
    manifest = told(layers, experts, rows.experts.shape[2])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, manifest.segment_schema) as stream:
        stream.write_batch(to_batch(rows, manifest))
    return base64.b64encode(sink.getvalue()).decode()


@dataclass
class FakeRank:
    """A worker that has recorded `rows`."""

    model: MoEModel
    rows: TokenRows
    place: dict[str, int] = field(default_factory=lambda: {"dp": 0, "pp": 0, "tp": 0})
    layers: list[int] | None = None
    recording: bool = True
    kept_steps: int = 1000  # the newest that can still be asked for
    status: dict[str, Any] = field(default_factory=dict)  # in place of what would be said

    def answer(self, action: str, options: dict[str, Any]) -> dict[str, Any]:
        layers = self.layers or list(self.model.moe_layers)
        decode = int((self.rows.phase == 1).sum()) if self.rows.phase is not None else 0
        said: dict[str, Any] = {
            "rank": self.place,
            "writes": True,
            "recording": self.recording,
            "path": "/data/run.moetrace",
            "tokens": len(self.rows),
            "prefill_tokens": len(self.rows) - decode,
            "decode_tokens": decode,
            "steps": 0,
            "dropped": {},
            "sampled_out": 0,
            "rotated": 0,
            "pending_bytes": 100,
            "seconds": 1.0,
            "error": None,
            "model": "qwen3_moe",
            "layers": layers,
            "experts": self.model.experts,
            "top_k": self.model.top_k,
            "engine": "vllm",
            "engine_version": "0.32.0",
        }
        if action == "recent":
            said["rows"] = self._recent(layers, options)
        return said | self.status

    def _recent(self, layers: list[int], options: dict[str, Any]) -> str:
        """The newest rows, as a worker of vLLM keeps and packs them."""
        newest = int(self.rows.step.max(initial=0))
        places = [self.model.moe_layers.index(layer) for layer in layers]
        kept = RecentRows()
        for step in range(max(0, newest - self.kept_steps + 1), newest + 1):
            rows = part(self.rows, self.rows.step == step)
            if len(rows):
                kept.add(replace(rows, experts=np.ascontiguousarray(rows.experts[:, places])))
        manifest = told(layers, self.model.experts, self.model.top_k)
        return kept.after(options["after_step"], options["max_bytes"], manifest)


class FakeServer:
    """Its ranks may be changed at any time; `body` replaces all answers by these bytes."""

    def __init__(self, ranks: list[FakeRank], token: str | None) -> None:
        self.ranks = ranks
        self.body: bytes | Callable[[], bytes] | None = None
        self.plugin = True
        self.asked: list[str] = []
        self._access = Access(token)
        self.url = ""

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        self.asked.append(path)
        if not self.plugin:
            return 404, b'{"detail": "Not Found"}'
        if self.body is not None:
            return 200, self.body if isinstance(self.body, bytes) else self.body()
        route, _, query = path.partition("?")
        asked = dict(pair.split("=") for pair in query.split("&") if pair)
        request = ControlRequest(route, Caller("127.0.0.1", headers), b"", asked)
        answer = asyncio.run(RecordingControl(self._call, self._access).answer(request))
        return answer.status, json.dumps(answer.body).encode()

    async def _call(self, action: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        return [rank.answer(action, options) for rank in self.ranks]


@contextmanager
def serving(
    ranks: list[FakeRank], *, token: str | None = None, port: int = 0
) -> Iterator[FakeServer]:
    """A server of `ranks` until the context ends."""
    fake = FakeServer(ranks, token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = fake.answer(self.path, headers)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
