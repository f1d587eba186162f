"""`capture server` of a real vLLM: the trace holds what the server returned, request by request.

A proxy stands in between and keeps the answers, which are decoded here by NumPy alone.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import Prompt
from moeprof.capture.server import ServerCapture, capture_server
from moeprof.capture.server.asking import Asking
from moeprof.errors import MoeprofError
from moeprof.trace import Trace, open_trace, validate_trace
from tests.capture.server import sockets
from tests.engines.vllm.recorded import returned_experts
from tests.engines.vllm.server import Server, serving
from tests.engines.vllm.tiny_model import MOE_LAYERS

logger = logging.getLogger(__name__)
# A token is a byte, and a block of the CPU's prefix cache has 128.
SHARED = "All of these prompts begin with the same sentence, so that its blocks are cached. " * 2
PROMPTS = [
    Prompt((SHARED if n % 2 else "") + f"Prompt number {n} " * (1 + n % 5), f"kind {n % 3}")
    for n in range(16)
]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ["--enforce-eager", "--enable-return-routed-experts"]
    arguments += ["--enable-prompt-tokens-details", "--max-num-batched-tokens=64"]
    arguments += ["--chat-template", "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}"]
    with serving(tiny, tmp_path_factory.mktemp("api"), *arguments, second_runner=True) as running:
        yield running


@contextmanager
def between(server: Server) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of a proxy before `server`, and the answers by their prompt."""
    answers: dict[str, Any] = {}

    def forward(request: sockets.Request, connection: socket.socket) -> None:
        with server.open(request.path, request.json() if request.body else None) as answer:
            status, content = f"{answer.status} {answer.reason}", answer.read()
        if request.method == "POST":
            body = request.json()
            text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            answers[text] = json.loads(content)
        sockets.send(connection, content, status)

    with sockets.serving(forward) as proxy:
        yield proxy.url, answers


def captured(
    server: Server, output: Path, tiny: Path, **options: Any
) -> tuple[Trace, ServerCapture, dict[str, Any]]:
    with between(server) as (url, answers):
        result = capture_server(
            url, PROMPTS, output, engine="vllm", model=tiny, timeout_s=120.0, **options
        )
    assert validate_trace(output).problems == [] and result.failed == {}
    return open_trace(output), result, answers


def recorded(trace: Trace, request: int) -> np.ndarray:
    mine = trace.request == request
    return np.stack([trace.experts(layer)[mine] for layer in MOE_LAYERS], axis=1)


@pytest.mark.parametrize("chat", [False, True])
def test_ids_are_those_returned_and_cached_tokens_are_not_counted(
    server: Server, tiny: Path, tmp_path: Path, chat: bool
) -> None:
    asking = Asking(max_new_tokens=6, chat=chat, token_ids=True)
    trace, result, answers = captured(server, tmp_path / "t", tiny, asking=asking, concurrency=6)
    compared = cached = 0
    for number, prompt in enumerate(PROMPTS):
        answer = answers[prompt.text]
        hit = (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        mine = trace.request == number
        expected = returned_experts(answer)[hit:]
        np.testing.assert_array_equal(recorded(trace, number), expected)
        assert trace.position[mine].tolist() == list(range(hit, hit + len(expected)))
        length = answer["usage"]["prompt_tokens"]
        assert (trace.phase[mine] == (trace.position[mine] >= length)).all()
        place = answer if chat else answer["choices"][0]
        ids = place["prompt_token_ids"] + answer["choices"][0]["token_ids"]
        assert trace.token_id[mine].tolist() == ids[hit:-1]
        assert trace.requests[number].label == prompt.label
        compared, cached = compared + len(expected), cached + hit
    assert compared == result.tokens == trace.tokens and cached == result.cached_tokens > 0
    assert trace.manifest.engine_version.startswith("0.32")
    logger.info("%d rows equal what vLLM returned, %d cached left out", compared, cached)


def test_choices_and_a_prefix_that_is_left_out(server: Server, tiny: Path, tmp_path: Path) -> None:
    asking = Asking(max_new_tokens=5, choices=2, temperature=1.0, prompt_start=10)
    trace, result, answers = captured(server, tmp_path / "t", tiny, asking=asking, keep_cached=True)
    for number, prompt in enumerate(PROMPTS):
        answer = answers[prompt.text]
        length = answer["usage"]["prompt_tokens"]
        first, second = (returned_experts({"choices": [c]}) for c in answer["choices"])
        np.testing.assert_array_equal(recorded(trace, 2 * number), first)
        np.testing.assert_array_equal(recorded(trace, 2 * number + 1), second[length - 10 :])
        assert trace.position[trace.request == 2 * number][0] == 10
    assert result.requests == 32 and result.unasked_tokens == 160
    assert result.decode_tokens == 32 * 4  # the last of 5 tokens is never routed


def test_real_refusals_are_one_line(server: Server, tiny: Path, tmp_path: Path) -> None:
    long = [Prompt("x" * 600)]  # more than the server's 512 tokens
    with between(server) as (url, _), pytest.raises(MoeprofError) as caught:
        capture_server(url, long, tmp_path / "t", engine="vllm", model=tiny)
    assert "HTTP 400" in str(caught.value) and "\n" not in str(caught.value)
    logger.info("%s", caught.value)
