"""Prompts to a running server, and the routing in its answers to a trace: `capture server`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moeprof.capture.http import HttpClient
from moeprof.capture.limits import Limits
from moeprof.capture.prompts import Prompt, check_texts, read_prompts
from moeprof.capture.result import check_numbers, check_output
from moeprof.capture.server.asker import RETRY_S, Asker
from moeprof.capture.server.asking import Asking, Engine, server_address
from moeprof.capture.server.job import Job, Progress
from moeprof.capture.server.models import served_model as find_model
from moeprof.capture.server.result import ServerCapture
from moeprof.capture.server.sglang import Sglang
from moeprof.capture.server.vllm import Vllm
from moeprof.errors import InputError
from moeprof.model import MoEModel

ENGINES: dict[str, Engine] = {"vllm": Vllm(), "sglang": Sglang()}
MOST_CONCURRENT = 1024


def capture_server(
    url: str,
    prompts: str | Path | Sequence[Prompt],
    output: str | Path,
    *,
    engine: str,
    model: str | Path | MoEModel | None = None,
    served_model: str | None = None,
    asking: Asking | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    max_answer_bytes: int = 64 << 20,
    retries: int = 2,
    keep_cached: bool = False,
    token: str | None = None,
    max_bytes: int | None = None,
    rotate: bool = False,
    duration_s: float | None = None,
    sample_requests: float | None = None,
    aggregate_steps: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ServerCapture:
    """Send `prompts` to the server at `url` and write the routing that it returns to `output`.

    `engine` is one of `ENGINES`; `model` is what the server runs, which it says itself if that is
    a preset or a folder on this machine. `concurrency` requests run at a time, each with
    `timeout_s` and `max_answer_bytes` for its answer; one is sent again, up to `retries` times,
    only where the server cannot have begun it. Requests are numbered by the order of `prompts`,
    so the same answers make the same rows whatever order they come in. Prompt tokens that came
    from the server's prefix cache are left out unless `keep_cached`. `token` is the server's API
    key. Limits are as in `record`, from the first answer on.

    A prompt that fails is counted with its reason; what was recorded stays. Ten failures in a row,
    or one that every prompt would meet, end the recording. Raises InputError for what cannot be
    used, HttpError if the server does not answer at all, MoeprofError if nothing was recorded.
    """
    asking = asking or Asking()
    limits = Limits(max_bytes, rotate, duration_s, sample_requests, asking.seed, aggregate_steps)
    chosen = _engine(engine)
    chosen.check(asking)
    _check_numbers(concurrency, retries, max_answer_bytes)
    wanted = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not wanted:
        raise InputError("there are no prompts")
    check_texts(wanted)
    check_output(Path(output), force=force)
    with HttpClient(
        server_address(url),
        token=token,
        timeout_s=timeout_s,
        max_bytes=max_answer_bytes,
        connections=concurrency + 1,
    ) as client:
        served = chosen.describe(client, served_model)
        known = find_model(served, model)
        asker = Asker(client, chosen, asking, served, known, wanted, retries, keep_cached)
        job = Job(asker, Path(output), limits, force)
        return job.run(concurrency, progress)


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise InputError(f"engine '{name}' is not one of {', '.join(ENGINES)}")
    return ENGINES[name]


def _check_numbers(concurrency: int, retries: int, max_answer_bytes: int) -> None:
    check_numbers(concurrency=concurrency, max_answer_bytes=max_answer_bytes)
    if concurrency > MOST_CONCURRENT:
        raise InputError(f"concurrency is {concurrency}, it must be at most {MOST_CONCURRENT}")
    if not 0 <= retries <= len(RETRY_S):
        raise InputError(f"retries is {retries}, it must lie in 0 to {len(RETRY_S)}")
