"""Switching the recording of a running server: the client's side of the routes below /moeprof."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from moeprof.capture.http import HttpClient, HttpError, is_loopback
from moeprof.capture.live_options import LiveOptions
from moeprof.errors import InputError, MoeprofError
from moeprof.result import Result

TIMEOUT_S = 75.0  # the server itself waits a minute for its engine
_MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class CaptureStatus(Result):
    """What a server says of its recording; counts are tokens of all ranks that write."""

    url: str
    recording: bool
    tokens: int
    dropped: int  # seen and not recorded
    prefill_tokens: int
    decode_tokens: int
    steps: int
    path: str | None  # of the trace, on the server's disk
    sampled_out: int = 0
    rotated: int = 0
    closing: bool = False  # what was recorded is still being written
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # why a rank does not record
    ranks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def writing(self) -> list[dict[str, Any]]:
        """The ranks that write a trace each."""
        return [rank for rank in self.ranks if rank["writes"]]


def start_capture(
    url: str,
    output: str | os.PathLike[str],
    *,
    max_bytes: int | None = None,
    rotate: bool = False,
    duration_s: float | None = None,
    sample_requests: float | None = None,
    seed: int = 0,
    token_ids: bool = False,
    aggregate_steps: int | None = None,
    request_names: str = "hashed",
    force: bool = False,
    token: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> CaptureStatus:
    """Begin recording in the server at `url`, to `output` on the server's disk.

    A relative `output` is seen from here if the server is on this machine, else it lies below the
    folder that the server was started with. Raises InputError on options that cannot be, and
    MoeprofError if the server does not start: it records already, say.
    """
    path = os.path.abspath(output) if is_loopback(url) else os.fspath(output)
    options = {
        "output": path,
        "max_bytes": max_bytes,
        "rotate": rotate,
        "duration_s": duration_s,
        "sample_requests": sample_requests,
        "seed": seed,
        "token_ids": token_ids,
        "aggregate_steps": aggregate_steps,
        "request_names": request_names,
        "force": force,
    }
    body = LiveOptions.parse(options).model_dump(mode="json")
    with _connected(url, token, timeout_s) as client:
        return _status(url, client.post("/moeprof/start", body))


def stop_capture(
    url: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S
) -> CaptureStatus:
    """End the recording in the server at `url`. Raises MoeprofError if there is none."""
    with _connected(url, token, timeout_s) as client:
        return _status(url, client.post("/moeprof/stop", {}))


def capture_status(
    url: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S
) -> CaptureStatus:
    """How the recording in the server at `url` stands; the last one's counts if it has ended."""
    with _connected(url, token, timeout_s) as client:
        return _status(url, client.get("/moeprof/status"))


@contextmanager
def _connected(url: str, token: str | None, timeout_s: float) -> Iterator[HttpClient]:
    """A client, and the server's refusals as errors with a remedy."""
    with HttpClient(url, token=token, timeout_s=timeout_s, max_bytes=_MAX_BYTES) as client:
        try:
            yield client
        except HttpError as error:
            raise _explained(client.url, error) from None


def _explained(url: str, error: HttpError) -> MoeprofError:
    if error.status == 404:
        return MoeprofError(
            f"{url}: no recording plugin answers there; start the server with "
            "'moeprof capture vllm -- ...', or with moeprof in VLLM_PLUGINS"
        )
    if error.status == 403:
        return MoeprofError(f"{url}: refused: {error.said or 'the token is missing or wrong'}")
    if error.status == 400:
        return InputError(f"{url}: {error.said or error.kind}")
    return MoeprofError(f"{url}: {error.said}") if error.said else error


class _Rank(BaseModel):
    """What is shown of a rank; the rest of what it says is kept as it stands."""

    model_config = ConfigDict(extra="allow", strict=True)

    writes: bool = True
    model: str = ""
    layers: list[NonNegativeInt] = []
    experts: NonNegativeInt = 0
    top_k: NonNegativeInt = 0
    engine: str = ""
    engine_version: str = ""


class _Status(BaseModel):
    """What of an answer is relied on. It comes from a server that may be anything."""

    model_config = ConfigDict(extra="ignore", strict=True)

    recording: bool
    tokens: NonNegativeInt
    prefill_tokens: NonNegativeInt = 0
    decode_tokens: NonNegativeInt = 0
    steps: NonNegativeInt = 0
    path: str | None = None
    sampled_out: NonNegativeInt = 0
    rotated: NonNegativeInt = 0
    closing: bool = False
    dropped: dict[str, NonNegativeInt] = {}
    errors: list[str] = []
    ranks: list[_Rank]


def _status(url: str, answer: Mapping[str, Any]) -> CaptureStatus:
    try:
        known = _Status.model_validate(answer)
    except ValidationError:
        raise MoeprofError(
            f"{url}: this is not the answer of moeprof's plugin; is another program there?"
        ) from None
    said = known.model_dump()
    dropped = said.pop("dropped")
    return CaptureStatus(url=url, dropped=sum(dropped.values()), dropped_by_reason=dropped, **said)
