"""Beam search: what was recorded is what the returned sequences needed, each token once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.capture.transformers.traffic import beams
from moeprof.trace import Trace, open_trace, validate_trace

from .conftest import EOS, PAD

WIDTH = 7


def search(model: Any, padded: tuple[Any, Any], path: Path, **settings: Any) -> tuple[Any, Trace]:
    """Returned sequences and the trace of a beam search over `padded`."""
    labels = [str(number) for number in range(12)]
    with record(model, path, token_ids=True, labels=labels) as recording:
        out = model.generate(padded[0], attention_mask=padded[1], pad_token_id=PAD, **settings)
    assert (recording.error, recording.dropped) == (None, 0)
    assert not validate_trace(path).problems
    return out, open_trace(path)


def new_tokens(sequence: Any) -> list[int]:
    """What a returned sequence has behind its prompt, up to its end."""
    new = sequence[WIDTH:].tolist()
    return new[: new.index(EOS) + 1] if EOS in new else new


@pytest.mark.parametrize("family", ["m3", "mixtral"])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": None},
        {"num_beams": 4, "max_new_tokens": 12, "eos_token_id": EOS, "early_stopping": True},
        {"num_beams": 2, "max_new_tokens": 5, "do_sample": True, "eos_token_id": None},
        {"num_beams": 2, "max_new_tokens": 5, "prefill_chunk_size": 3, "eos_token_id": None},
    ],
    ids=["greedy", "with ends", "sampled", "chunked prefill"],
)
def test_a_request_is_a_returned_sequence(
    family: str,
    settings: dict[str, Any],
    build: Callable[[str], Any],
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
) -> None:
    model = build(family)
    torch.manual_seed(0)
    out, trace = search(model, padded, tmp_path / "t.moetrace", **settings)
    assert len(trace.requests) == 3
    for request, sequence in zip(trace.requests, out, strict=True):
        mine = trace.request == request.index
        prompt = padded[0][request.index][padded[1][request.index] == 1].tolist()
        new = new_tokens(sequence)
        assert trace.token_id[mine].tolist() == prompt + new[:-1]
        assert trace.position[mine].tolist() == list(range(len(prompt) + len(new) - 1))
        assert (request.prompt_tokens, request.output_tokens) == (len(prompt), len(new))
        assert request.label == str(request.index)


def test_its_ids_are_those_of_the_sequence_alone(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    model = build("mixtral")
    settings = {"num_beams": 4, "max_new_tokens": 10, "eos_token_id": None}
    out, trace = search(model, padded, tmp_path / "t.moetrace", **settings)
    for request in range(3):
        prompt = padded[0][request][padded[1][request] == 1]
        alone = tmp_path / f"{request}.moetrace"
        with torch.no_grad(), record(model, alone):
            model(torch.cat([prompt, out[request, WIDTH:-1]])[None])
        for layer in trace.layers:
            mine = trace.experts(layer)[trace.request == request]
            # another order of floating point operations may turn a tie, and does nothing worse
            same = np.sort(mine) == np.sort(open_trace(alone).experts(layer))
            assert np.mean(same) > 0.95


def test_sequences_that_share_a_beginning_have_it_once(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path
) -> None:
    settings = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 6}
    model = build("mixtral")
    out, trace = search(model, padded, tmp_path / "t.moetrace", eos_token_id=None, **settings)
    assert len(trace.requests) == 6
    for prompt in range(3):
        fed = [out[2 * prompt + n, WIDTH:-1].tolist() for n in range(2)]
        shared = next((n for n in range(5) if fed[0][n] != fed[1][n]), 5)
        length = int(padded[1][prompt].sum())
        first, second = (trace.position[trace.request == 2 * prompt + n] for n in range(2))
        assert first.tolist() == list(range(length + 5))
        assert second.tolist() == list(range(length + shared, length + 5))


def test_a_search_that_never_ends_is_counted(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path
) -> None:
    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    model, path = build("mixtral"), tmp_path / "t.moetrace"
    with record(model, path) as recording:
        with pytest.raises(KeyboardInterrupt):
            model.generate(
                padded[0],
                attention_mask=padded[1],
                num_beams=2,
                logits_processor=[stop],
                max_new_tokens=4,
                pad_token_id=PAD,
            )
        model.generate(padded[0], attention_mask=padded[1], max_new_tokens=2, pad_token_id=PAD)
    assert (recording.error, recording.dropped) == (None, 2 * 17)
    assert recording.tokens >= 17


def test_a_search_too_long_to_hold_is_dropped_and_counted(
    build: Callable[[str], Any],
    padded: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beams, "MAX_HELD_BYTES", 4000)
    model, path = build("mixtral"), tmp_path / "t.moetrace"
    settings = {"num_beams": 2, "max_new_tokens": 40, "eos_token_id": None, "pad_token_id": PAD}
    with record(model, path) as recording:
        model.generate(padded[0], attention_mask=padded[1], **settings)
    assert recording.error is None and recording.tokens > 0
    assert recording.tokens + recording.dropped == 17 + 3 * 39


def test_the_cache_is_left_as_it_was(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path
) -> None:
    from transformers import DynamicCache

    model = build("mixtral")
    cache = DynamicCache(config=model.config)
    with record(model, tmp_path / "t.moetrace"):
        model.generate(
            padded[0],
            attention_mask=padded[1],
            past_key_values=cache,
            num_beams=2,
            max_new_tokens=3,
            pad_token_id=PAD,
        )
    assert "reorder_cache" not in vars(cache)
