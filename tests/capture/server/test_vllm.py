"""What a vLLM server returns is what the trace holds, in every layout that releases had."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import Prompt
from moeprof.capture.server import ServerCapture, capture_server
from moeprof.capture.server.asking import Asking
from moeprof.errors import InputError
from moeprof.trace import Trace, open_trace, validate_trace
from moeprof.trace.formats import import_trace

from .engines import MODEL, VllmServer, routing_of
from .sockets import Answer, Request, serving

PROMPTS = [Prompt("hello world", "greeting"), Prompt("a longer prompt, of code", "code")]


def captured(
    answer: Answer, output: Path, prompts: list[Prompt] = PROMPTS, **options: Any
) -> tuple[Trace, ServerCapture]:
    """What is recorded, which must be a sound trace."""
    options = {"engine": "vllm", "model": MODEL, "timeout_s": 10.0, **options}
    asking = options.setdefault("asking", Asking(max_new_tokens=4))
    assert isinstance(asking, Asking)
    with serving(answer) as server:
        result = capture_server(server.url, prompts, output, **options)
    assert validate_trace(output).problems == []
    trace = open_trace(output)
    assert result.tokens == trace.tokens == result.prefill_tokens + result.decode_tokens
    return trace, result


def ids_of(trace: Trace, request: int) -> np.ndarray:
    mine = trace.request == request
    return np.stack([trace.experts(layer)[mine] for layer in trace.layers], axis=1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
@pytest.mark.parametrize("layout", ["npy", "two-arrays", "dynamo"])
@pytest.mark.parametrize("layers", ["all", "moe"])
def test_recorded_ids_are_those_returned(
    tmp_path: Path, dtype: str, layout: str, layers: str
) -> None:
    server = VllmServer(dtype=dtype, layout=layout, layers=layers)
    trace, result = captured(server, tmp_path / "t")
    assert trace.layers == (1, 2, 3) and result.requests == 2 and result.failed == {}
    for number, prompt in enumerate(PROMPTS):
        length = len(prompt.text)
        expected = routing_of(prompt.text, length + 3)  # the last of 4 tokens is never routed
        assert (ids_of(trace, number) == expected).all()
        mine = trace.request == number
        assert trace.position[mine].tolist() == list(range(length + 3))
        assert (trace.phase[mine] == (np.arange(length + 3) >= length)).all()
        stored = trace.requests[number]
        assert (stored.label, stored.prompt_tokens, stored.output_tokens) == (
            prompt.label,
            length,
            4,
        )
    assert trace.manifest.engine == "vllm" and trace.manifest.engine_version == "0.32.0"


def test_a_file_of_answers_and_the_live_capture_are_the_same_rows(tmp_path: Path) -> None:
    answers: list[Any] = []
    server = VllmServer(change=lambda _, answer: answers.append(answer))
    live, _ = captured(server, tmp_path / "live", concurrency=1)
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    import_trace(file, tmp_path / "file", model=MODEL)
    imported = open_trace(tmp_path / "file")
    for column in ("step", "request", "position", "phase"):
        assert (getattr(live, column) == getattr(imported, column)).all()
    for layer in live.layers:
        assert (live.experts(layer) == imported.experts(layer)).all()


def test_choices_do_not_count_the_prompt_twice(tmp_path: Path) -> None:
    asking = Asking(max_new_tokens=4, choices=3)
    trace, result = captured(VllmServer(), tmp_path / "t", asking=asking)
    prompts = sum(len(prompt.text) for prompt in PROMPTS)
    assert result.requests == 6 and result.prefill_tokens == prompts
    assert result.decode_tokens == 6 * 3 and result.repeated_tokens == 2 * prompts
    text = PROMPTS[1].text
    assert (ids_of(trace, 5) == routing_of(text, len(text) + 3, 2)[len(text) :]).all()
    assert [trace.requests[n].label for n in range(6)] == ["greeting"] * 3 + ["code"] * 3


def test_chat_and_token_ids(tmp_path: Path) -> None:
    for chat, prefix in ((False, ""), (True, "<user>")):
        asking = Asking(max_new_tokens=3, chat=chat, token_ids=True)
        trace, _ = captured(VllmServer(), tmp_path / f"t{chat}", asking=asking)
        ids = trace.token_id[trace.request == 0].tolist()
        assert ids == list((prefix + PROMPTS[0].text).encode()) + [200] * 2
    plain, _ = captured(VllmServer(), tmp_path / "plain")
    assert not plain.manifest.token_ids


def test_cached_prompt_tokens_are_left_out_and_counted_or_kept(tmp_path: Path) -> None:
    server = VllmServer(cached=8)
    trace, result = captured(server, tmp_path / "t")
    assert result.cached_tokens == 16 and not result.cached_kept
    assert trace.position[trace.request == 0].tolist() == list(range(8, 14))
    assert (ids_of(trace, 0) == routing_of(PROMPTS[0].text, 14)[8:]).all()
    kept, result = captured(server, tmp_path / "kept", keep_cached=True)
    assert kept.tokens == trace.tokens + 16 and result.cached_tokens == 16 and result.cached_kept
    unsaid, result = captured(VllmServer(), tmp_path / "unsaid")
    assert result.cached_tokens is None and unsaid.tokens == kept.tokens
    assert any("does not say which prompt tokens" in note for note in result.notes)


@pytest.mark.parametrize("layout", ["npy", "dynamo"])
def test_a_prefix_that_was_not_asked_for_keeps_positions_right(tmp_path: Path, layout: str) -> None:
    asking = Asking(max_new_tokens=4, prompt_start=5)
    trace, result = captured(VllmServer(layout=layout), tmp_path / "t", asking=asking)
    assert result.unasked_tokens == 10
    assert trace.position[trace.request == 0].tolist() == list(range(5, 14))
    assert (ids_of(trace, 0) == routing_of(PROMPTS[0].text, 14)[5:]).all()


def test_order_of_answers_does_not_matter(tmp_path: Path) -> None:
    prompts = [Prompt(f"prompt number {n}") for n in range(24)]
    server = VllmServer()
    delays = random.Random(0)

    def late(request: Request, connection: socket.socket) -> None:
        time.sleep(delays.random() / 50)
        server(request, connection)

    one, _ = captured(server, tmp_path / "one", prompts, concurrency=1)
    many, _ = captured(late, tmp_path / "many", prompts, concurrency=8)
    files = sorted(path.relative_to(one.path) for path in one.path.rglob("*.arrows"))
    assert len(files) > 1
    for file in files:
        if "telemetry" not in file.name:
            assert (one.path / file).read_bytes() == (many.path / file).read_bytes(), file


def test_what_is_asked_of_the_server(tmp_path: Path) -> None:
    seen: list[Any] = []
    server = VllmServer(change=lambda request, _: seen.append(request.json()))
    captured(server, tmp_path / "a", concurrency=1)
    assert seen[0] == {
        "model": "tiny", "prompt": "hello world", "max_tokens": 4, "temperature": 0.0,
        "stream": False,
    }  # fmt: skip
    asking = Asking(max_new_tokens=4, temperature=0.7, seed=5, chat=True)
    captured(server, tmp_path / "b", asking=asking, concurrency=1)
    assert [body["seed"] for body in seen[2:]] == [5, 6]
    assert seen[2]["messages"] == [{"role": "user", "content": "hello world"}]


def test_the_model_is_the_servers_own_where_it_is_known_here(tmp_path: Path) -> None:
    from tests.conftest import small_config

    (tmp_path / "config.json").write_text(json.dumps(small_config(top_k=2)))
    server = VllmServer(root=str(tmp_path))
    trace, _ = captured(server, tmp_path / "t", model=None)
    assert trace.layers == (1, 2, 3)
    with pytest.raises(InputError, match="which is no preset and no folder on this machine"):
        captured(VllmServer(), tmp_path / "u", model=None)
    with pytest.raises(InputError, match="serves no model other; it has: lora, tiny"):
        captured(VllmServer(), tmp_path / "u", served_model="other")


def test_limits_are_those_of_every_recording(tmp_path: Path) -> None:
    prompts = [Prompt(f"prompt number {n}") for n in range(40)]
    trace, result = captured(VllmServer(), tmp_path / "t", prompts, sample_requests=0.5)
    kept = np.unique(trace.request)
    assert 0 < len(kept) < 40 and result.sampled_out > 0
    assert result.sampled_out + result.tokens == sum(len(p.text) + 3 for p in prompts)


def test_a_full_trace_ends_the_asking_and_an_address_may_end_in_v1(tmp_path: Path) -> None:
    prompts = [Prompt(f"{n}" * 20_000) for n in range(10, 40)]
    with serving(VllmServer()) as server:
        result = capture_server(
            server.url + "/v1/", prompts, tmp_path / "t", engine="vllm", model=MODEL,
            max_bytes=1 << 20, concurrency=1,
        )  # fmt: skip
        assert len(server.seen) < 20
    assert 0 < result.requests < 10 and result.dropped > 0 and result.problem is None
    assert result.failed == {"not recorded before the end": 30 - result.requests}
    assert sum(f.stat().st_size for f in (tmp_path / "t").rglob("*") if f.is_file()) <= 1 << 20
    assert validate_trace(tmp_path / "t").problems == []


def test_counts_alone_are_those_of_the_tokens(tmp_path: Path) -> None:
    tokens, _ = captured(VllmServer(), tmp_path / "tokens")
    with serving(VllmServer()) as server:
        result = capture_server(
            server.url, PROMPTS, tmp_path / "counts", engine="vllm", model=MODEL,
            asking=Asking(max_new_tokens=4), aggregate_steps=3,
        )  # fmt: skip
    counts = open_trace(tmp_path / "counts")
    assert (result.tokens, result.decode_tokens) == (tokens.tokens, 6)
    for index, layer in enumerate(tokens.layers):
        chosen = np.bincount(tokens.experts(layer).reshape(-1), minlength=16)
        assert (counts.counts[:, index].sum(axis=0) == chosen).all()


def test_the_real_fixtures_are_read_as_an_answer(tmp_path: Path) -> None:
    from moeprof.model import MoEModel
    from tests.conftest import small_config
    from tests.trace.formats.files import shared

    model = MoEModel.from_config(small_config(experts=8, top_k=2))
    for name in ("fixture_vllm_chat.json", "fixture_vllm_completions.json"):
        document = json.loads(shared("fixtures", name).read_text())

        def real(request: Request, answer: dict[str, Any], document: Any = document) -> None:
            answer.clear()
            answer.update(document)

        trace, _ = captured(
            VllmServer(change=real), tmp_path / name, [Prompt("x")], model=model,
            asking=Asking(max_new_tokens=6),
        )  # fmt: skip
        usage = document["usage"]
        assert trace.tokens == usage["prompt_tokens"] + usage["completion_tokens"] - 1
        assert trace.layers == (1, 2, 3) and trace.unrecorded == 0
