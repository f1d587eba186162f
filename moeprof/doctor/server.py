"""The server at an address: its engine, our plugin in it, and whether it returns routed experts."""

from __future__ import annotations

from typing import Any

from moeprof.capture.control import capture_status
from moeprof.capture.http import HttpClient, HttpError, parse_json
from moeprof.doctor.check import Check
from moeprof.errors import MoeprofError

TIMEOUT_S = 2.0
_MAX_BYTES = 4 << 20


def check_server(url: str, token: str | None) -> list[Check]:
    """Raises InputError if `url` is no address."""
    with HttpClient(url, timeout_s=TIMEOUT_S, max_bytes=_MAX_BYTES) as client:
        engine = _engine(client)
        if not engine.ok:
            return [engine]
        plugin = _plugin(url, token)
        returns = _returns(client)
    if plugin.ok or returns.ok:
        return [engine, plugin, returns]
    remedy = "moeprof capture vllm -- ..., or start it with --enable-return-routed-experts"
    detail = "this server can not be recorded as it runs"
    return [engine, plugin, returns, Check("recording", False, detail, True, remedy)]


def _engine(client: HttpClient) -> Check:
    """vLLM says its version at /version, SGLang its arguments and version at another place."""
    try:
        for name, said in (("vLLM", _asked(client, "/version")), ("SGLang", _of_sglang(client))):
            if isinstance(said.get("version"), str):
                return Check("server", True, f"{name} {said['version'][:40]} at {client.url}")
    except MoeprofError as error:
        return Check("server", False, str(error), True)
    detail = f"{client.url} is neither vLLM nor SGLang"
    return Check("server", False, detail, True, "give the engine's own address")


def _plugin(url: str, token: str | None) -> Check:
    try:
        status = capture_status(url, token=token, timeout_s=TIMEOUT_S)
    except MoeprofError as error:
        return Check("server plugin", False, str(error))
    state = f"recording to {status.path}" if status.recording else "loaded, not recording"
    detail = f"{state}, {len(status.ranks)} ranks, {status.tokens:,} tokens"
    if status.errors:
        remedy = "see the server's log"
        return Check("server plugin", False, f"{detail}; {status.errors[0]}", remedy=remedy)
    return Check("server plugin", True, detail)


def _returns(client: HttpClient) -> Check:
    """Whether responses carry routed experts: SGLang says so, vLLM is asked for one token."""
    name = "routed experts"
    try:
        ok = _of_sglang(client).get("enable_return_routed_experts") is True
        ok = ok or _vllm_returns(client)
    except MoeprofError as error:
        return Check(name, False, f"not known: {error}")
    if ok:
        return Check(name, True, "returned: moeprof capture server works")
    return Check(name, False, "not returned by this server")


def _asked(client: HttpClient, path: str) -> dict[str, Any]:
    """The object at `path`; {} if there is none. Raises HttpError if there is no server."""
    try:
        content = client.read("GET", path)
    except HttpError as error:
        if error.status is None:
            raise
        return {}
    try:
        said = parse_json(client.url + path, content)
    except HttpError:
        return {}
    return said if isinstance(said, dict) else {}


def _of_sglang(client: HttpClient) -> dict[str, Any]:
    return _asked(client, "/server_info") or _asked(client, "/get_server_info")


def _vllm_returns(client: HttpClient) -> bool:
    models = client.get("/v1/models")
    model = _first(models, "data").get("id")
    if not isinstance(model, str):
        return False
    asked = {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0}
    choice = _first(client.post("/v1/completions", asked), "choices")
    return isinstance(choice.get("routed_experts"), str)


def _first(document: Any, key: str) -> dict[str, Any]:
    """The first object in the list under `key`; {} where there is none."""
    listed = document.get(key) if isinstance(document, dict) else None
    first = listed[0] if isinstance(listed, list) and listed else None
    return first if isinstance(first, dict) else {}
