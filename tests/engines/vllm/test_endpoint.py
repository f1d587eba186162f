"""The routes in vLLM's own web framework, with an engine that is made up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.capture.vllm.fake_server import FakeRank, FakeRanks

LOCAL = ("127.0.0.1", 5000)


class Engines:
    """Two data-parallel engines: vLLM asks both and `collective_rpc` tells of the first."""

    def __init__(self) -> None:
        self.each = [FakeRanks(FakeRank(dp=dp)) for dp in range(2)]
        self.engine_core: Any = self

    async def call_utility_all_async(self, utility: str, *arguments: Any) -> list[Any]:
        method, timeout, (action, options), kwargs = arguments
        assert (utility, method, timeout, kwargs) == (
            "collective_rpc",
            "moeprof_control",
            None,
            None,
        )
        return [await engine.call(action, options) for engine in self.each]

    async def collective_rpc(self, method: str, args: tuple[str, dict[str, Any]]) -> list[Any]:
        assert method == "moeprof_control"
        first, _ = [await engine.call(*args) for engine in self.each]
        return first


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have our method, as after the general plugin."""
    from vllm.v1.worker.worker_base import WorkerBase

    monkeypatch.setattr(WorkerBase, "moeprof_control", lambda self: {}, raising=False)


def client(engine: Any, peer: tuple[str, int] = LOCAL) -> Any:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from moeprof.capture.vllm.endpoint import RecordingEndpoint

    app, endpoint = FastAPI(), RecordingEndpoint()
    endpoint.attach_router(app)
    asyncio.run(endpoint.init_state(engine, app.state, None))
    return TestClient(app, base_url="http://localhost:8000", client=peer)


def test_vllm_takes_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.plugins import load_endpoint_plugins
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    monkeypatch.setenv("VLLM_PLUGINS", "moeprof")
    (plugin,) = load_endpoint_plugins(("generate",))
    assert isinstance(plugin, EndpointPlugin) and plugin.name == "moeprof"
    assert load_endpoint_plugins(("render",)) == []
    monkeypatch.delenv("VLLM_PLUGINS")
    assert load_endpoint_plugins(("generate",)) == []


def test_all_engines_are_asked(patched: None, tmp_path: Path) -> None:
    engines = Engines()
    http = client(engines)
    started = http.post("/moeprof/start", json={"output": str(tmp_path / "t")})
    assert started.status_code == 200 and started.headers["cache-control"] == "no-store"
    assert [rank["rank"]["dp"] for rank in started.json()["ranks"]] == [0, 1]
    assert http.get("/moeprof/recent?after=3").json()["ranks"][1]["rows"]
    assert engines.each[1].ranks[0].options["after_step"] == 3
    assert http.post("/moeprof/stop", json={}).json()["recording"] is False


def test_a_client_that_asks_one_engine_is_good_enough(patched: None, tmp_path: Path) -> None:
    engines = Engines()
    engines.engine_core = None
    started = client(engines).post("/moeprof/start", json={"output": str(tmp_path / "t")})
    assert len(started.json()["ranks"]) == 1
    assert [engine.asked for engine in engines.each] == [["status", "start"]] * 2


def test_who_is_answered(patched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines()
    assert client(engines).get("/moeprof/status").status_code == 200
    assert client(engines, ("10.0.0.9", 1)).get("/moeprof/status").status_code == 403
    for name, value in (
        ("origin", "https://evil.example"),
        ("x-forwarded-for", "127.0.0.1"),
        ("host", "evil.example"),
        ("sec-fetch-site", "cross-site"),
    ):
        http = client(engines)
        assert http.get("/moeprof/status", headers={name: value}).status_code == 403
        assert http.post("/moeprof/stop", json={}, headers={name: value}).status_code == 403
    monkeypatch.setenv("MOEPROF_TOKEN", "s3cret")
    http = client(engines, ("10.0.0.9", 1))
    assert http.get("/moeprof/status").status_code == 403
    assert http.get("/moeprof/status", headers={"authorization": "Bearer s3cret"}).is_success


def test_requests_that_are_none(patched: None) -> None:
    http = client(Engines())
    assert http.get("/moeprof/start").status_code == 405
    assert http.post("/moeprof/status", json={}).status_code == 405
    assert http.post("/moeprof/start", content="output=/x").status_code == 415
    assert (
        http.post("/moeprof/start", json={"output": "/x", "more": "y" * 70_000}).status_code == 413
    )
    assert http.post("/moeprof/start", json=[1]).status_code == 400


def test_without_the_workers_method_no_worker_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.worker_base import WorkerBase

    if hasattr(WorkerBase, "moeprof_control"):
        monkeypatch.delattr(WorkerBase, "moeprof_control")
    engines = Engines()
    answer = client(engines).get("/moeprof/status")
    assert answer.status_code == 503 and "general plugin" in answer.json()["error"]
    assert client(None).get("/moeprof/status").status_code == 503  # a server without an engine
    assert engines.each[0].asked == []
