"""The `vllm.endpoint_plugins` entry point: routes below /moeprof in a vLLM server.

vLLM loads it only where `VLLM_PLUGINS` names it (vllm/plugins/__init__.py, 0.32). It reaches the
workers by the method that the `vllm.general_plugins` entry point gives them.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Any

from moeprof.capture.vllm.endpoint_access import Access, Caller
from moeprof.capture.vllm.endpoint_control import (
    MAX_BODY_BYTES,
    ROUTES,
    ControlAnswer,
    ControlRequest,
    RecordingControl,
)

WORKER_METHOD = "moeprof_control"
BODY_TIMEOUT_S = 10.0


class RecordingEndpoint:
    """What vLLM asks of an endpoint plugin (vllm/plugins/endpoint_plugins/interface.py)."""

    name = "moeprof"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._control: RecordingControl | None = None

    def attach_router(self, app: Any) -> None:
        """Add the routes; plain Starlette ones, which stay out of the server's OpenAPI page."""
        from starlette.routing import Route

        app.router.routes += [
            Route(path, partial(self._serve, path), methods=[method])
            for path, method in ROUTES.items()
        ]

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """The engine is up: requests can be answered from here on."""
        if engine_client is not None and _workers_are_patched():
            self._control = RecordingControl(
                rank_caller(engine_client),
                Access.from_environment(os.environ),
                alive=lambda: not getattr(engine_client, "errored", False),
            )

    async def _serve(self, path: str, request: Any) -> Any:
        from starlette.responses import JSONResponse

        answer = await self._answer(path, request)
        return JSONResponse(answer.body, answer.status, headers={"Cache-Control": "no-store"})

    async def _answer(self, path: str, request: Any) -> ControlAnswer:
        if self._control is None:
            return ControlAnswer(503, {"error": "moeprof's general plugin is not loaded here"})
        try:
            body = await asyncio.wait_for(_read_body(request), BODY_TIMEOUT_S)
        except TimeoutError:
            return ControlAnswer(408, {"error": "the request did not end"})
        peer = request.client.host if request.client else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        return await self._control.answer(
            ControlRequest(path, Caller(peer, headers), body, dict(request.query_params))
        )


def rank_caller(engine_client: Any) -> Any:
    """`call(action, options)` for every rank of every engine that this API server runs.

    With data parallelism `EngineClient.collective_rpc` reaches all engines but returns what the
    first says (vllm/v1/engine/core_client.py, DPLBAsyncMPClient.call_utility_async, 0.32). The
    client of the engines can tell all; where it cannot, the first engine's answer is what we have.
    """
    core = getattr(engine_client, "engine_core", None)
    ask_all = getattr(core, "call_utility_all_async", None)

    async def call(action: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        arguments = (action, options)
        if ask_all is None:
            found = await engine_client.collective_rpc(WORKER_METHOD, args=arguments)
            return list(found)
        engines = await ask_all("collective_rpc", WORKER_METHOD, None, arguments, None)
        return [rank for ranks in engines for rank in ranks]

    return call


async def _read_body(request: Any) -> bytes:
    """The body, but no more of it than shows that it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


def _workers_are_patched() -> bool:
    """Whether workers have our method; vLLM loads general plugins in this process too.

    Asked for a method that they lack, the workers of one engine answer with errors, of which the
    executor reads the first and takes the others for answers to later calls. So they are not asked.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    return hasattr(WorkerBase, WORKER_METHOD)
