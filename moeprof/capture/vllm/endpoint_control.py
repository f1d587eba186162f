"""Start, stop, status and recent rows of a recording over HTTP, with no web framework in it.

A request goes in, a status and a JSON body come out. The ranks are reached through one function,
`call(action, options)`, which returns what each of them says.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeprof.capture.live_options import LiveOptions
from moeprof.capture.vllm.endpoint_access import Access, Caller, RefusedError
from moeprof.capture.vllm.endpoint_ranks import rank_name, summarize
from moeprof.errors import InputError

ROUTES = {
    "/moeprof/start": "POST",
    "/moeprof/stop": "POST",
    "/moeprof/status": "GET",
    "/moeprof/recent": "GET",
}
MAX_BODY_BYTES = 64 << 10
MAX_RECENT_BYTES = 4 << 20  # of one rank
ANSWER_TIMEOUT_S = 45.0  # an engine answers between two steps; a compiling one takes its time
LOOK_S = 0.25  # between two looks at whether the engine is still there
CLOSING_TIMEOUT_S = 10.0  # for a trace to be closed; then the answer says that it is closing still
CLOSING_POLL_S = 0.1

Call = Callable[[str, dict[str, Any]], Awaitable[list[dict[str, Any]]]]


@dataclass(frozen=True)
class ControlRequest:
    """What matters of an HTTP request. `path` is one of ROUTES."""

    path: str
    caller: Caller
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ControlAnswer:
    """An HTTP status and the body, in JSON types. A refusal is {"error": SENTENCE, ...}."""

    status: int
    body: dict[str, Any]


class RecordingControl:
    """Answers requests for one server. Starts and stops wait for each other.

    `alive` is whether the engine can still answer.
    """

    def __init__(
        self,
        call: Call,
        access: Access,
        alive: Callable[[], bool] = lambda: True,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._call_ranks = call
        self._access = access
        self._alive = alive
        self._timeout_s = timeout_s
        self._switching = asyncio.Lock()

    async def answer(self, request: ControlRequest) -> ControlAnswer:
        """What `request` gets. Does not raise."""
        act = {
            "/moeprof/start": self._start,
            "/moeprof/stop": self._stop,
            "/moeprof/status": self._status,
            "/moeprof/recent": self._recent,
        }[request.path]
        try:
            self._access.admit(request.caller)
            _check_body(request)
            return await act(request)
        except RefusedError as refused:
            return ControlAnswer(refused.status, {"error": str(refused)})

    async def _start(self, request: ControlRequest) -> ControlAnswer:
        options = read_options(request.body)
        output = self._access.output_path(options["output"], request.caller)
        async with self._switching:
            before = summarize(await self._ask("status"))
            if before["recording"]:
                where = before["path"] or "several traces"
                return _refusal(409, f"recording already, to {where}; stop it first", before)
            if Path(output).exists() and not options["force"]:
                return _refusal(409, f"{output} exists on the server; 'force' replaces a trace")
            ranks = await self._ask("start", {**options, "output": output})
            refused = [rank for rank in ranks if _refuses(rank)]
            if refused:
                return await self._roll_back(ranks, refused)
        return ControlAnswer(200, summarize(ranks))

    async def _roll_back(
        self, ranks: list[dict[str, Any]], refused: list[dict[str, Any]]
    ) -> ControlAnswer:
        """Some ranks refused to start: the others are stopped, for half a recording misleads."""
        reasons = "; ".join(sorted({str(rank["error"]) for rank in refused}))
        started = summarize([rank for rank in ranks if rank.get("recording")])
        if not started["recording"]:
            return _refusal(500, f"not started: {reasons}")
        who = ", ".join(rank_name(rank) for rank in refused)
        after = await self._stop_all()
        left = ", ".join(rank_name(rank) for rank in after if rank.get("recording"))
        outcome = (
            f"{left} records on"
            if left
            else f"the others were stopped again, what they began lies at {started['path']}"
        )
        return _refusal(500, f"not started: {who}: {reasons}; {outcome}", summarize(after))

    async def _stop(self, request: ControlRequest) -> ControlAnswer:
        async with self._switching:
            before = summarize(await self._ask("status"))
            if not before["recording"] and not before["closing"]:
                return _refusal(409, "nothing is being recorded", before)
            ranks = await self._stop_all()
        left = ", ".join(rank_name(rank) for rank in ranks if rank.get("recording"))
        if left:
            reasons = "; ".join(str(r["error"]) for r in ranks if r.get("error"))
            return _refusal(500, f"{left} records on: {reasons}", summarize(ranks))
        return ControlAnswer(200, summarize(ranks))

    async def _stop_all(self) -> list[dict[str, Any]]:
        """Stop every rank, and wait a while for what each has still to write."""
        ranks = await self._ask("stop")
        until = time.monotonic() + CLOSING_TIMEOUT_S
        while summarize(ranks)["closing"] and time.monotonic() < until:
            await asyncio.sleep(CLOSING_POLL_S)
            ranks = await self._ask("status")
        return ranks

    async def _status(self, request: ControlRequest) -> ControlAnswer:
        return ControlAnswer(200, summarize(await self._ask("status")))

    async def _recent(self, request: ControlRequest) -> ControlAnswer:
        options = {
            "after_step": _whole_number(request.query, "after", -1),
            "max_bytes": min(
                _whole_number(request.query, "max_bytes", MAX_RECENT_BYTES), MAX_RECENT_BYTES
            ),
        }
        return ControlAnswer(200, summarize(await self._ask("recent", options)))

    async def _ask(
        self, action: str, options: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """What every rank says. Raises RefusedError if they cannot be asked.

        The engine has no time limit of its own for this: vLLM's executor would take a late answer
        for that to the next call. The question goes on by itself when we no longer wait.
        """
        question = asyncio.ensure_future(self._call_ranks(action, options or {}))
        question.add_done_callback(_look_at)
        await self._wait(question)
        try:
            ranks = question.result()
        except asyncio.InvalidStateError:
            raise self._unanswered() from None
        except Exception as error:
            raise RefusedError(503, f"the engine cannot be asked: {_one_line(error)}") from None
        if not ranks or not all(isinstance(rank, dict) for rank in ranks):
            raise RefusedError(503, "the engine's workers gave no answer that moeprof knows")
        return ranks

    async def _wait(self, question: asyncio.Future[Any]) -> None:
        """Until `question` is answered or will not be.

        A server that is told to stop ends only when its requests have: one whose engine is gone
        must not keep it.
        """
        now = asyncio.get_running_loop().time
        end = now() + self._timeout_s
        while not question.done() and self._alive() and now() < end:
            await asyncio.wait({question}, timeout=min(LOOK_S, self._timeout_s))

    def _unanswered(self) -> RefusedError:
        if not self._alive():
            return RefusedError(503, "the engine has ended")
        return RefusedError(
            504,
            f"the engine did not answer within {self._timeout_s:g} s; it may still do what was "
            "asked, see /moeprof/status",
        )


def read_options(body: bytes) -> dict[str, Any]:
    """The options of a start in JSON types. Raises RefusedError, status 400."""
    try:
        return LiveOptions.parse(json.loads(body or b"{}")).model_dump(mode="json")
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RefusedError(400, "the body is no JSON document") from None
    except InputError as error:
        raise RefusedError(400, str(error)) from None


def _refuses(rank: dict[str, Any]) -> bool:
    """Whether a rank that is to write has not begun."""
    wanted = rank.get("writes", True)
    return bool(wanted and rank.get("error") and not rank.get("recording"))


def _check_body(request: ControlRequest) -> None:
    if ROUTES[request.path] != "POST":
        return
    kind = request.caller.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a form in a web page cannot send
        raise RefusedError(415, "send JSON, with Content-Type: application/json")
    if len(request.body) > MAX_BODY_BYTES:
        raise RefusedError(413, f"the request is larger than {MAX_BODY_BYTES:,} bytes")


def _whole_number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.lstrip("-").isdecimal() or len(text) > 18:
        raise RefusedError(400, f"{name}={text[:40]!r}: give a whole number")
    return int(text)


def _refusal(status: int, reason: str, summary: dict[str, Any] | None = None) -> ControlAnswer:
    """What stands, without the ranks: a client reads little of an answer that refuses."""
    known = {"recording": False, **(summary or {})}
    return ControlAnswer(
        status,
        {"error": reason, **{k: v for k, v in known.items() if k not in ("ranks", "errors")}},
    )


def _look_at(question: asyncio.Future[Any]) -> None:
    """An error that nobody waits for any more is not worth a traceback in the server's log."""
    if not question.cancelled():
        question.exception()


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
