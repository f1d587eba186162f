"""Compiled models are recorded as eager ones are, and nothing is missed in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.trace import open_trace

from .conftest import assert_untouched, live_rows

NEW_TOKENS = 5
GENERATE = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def model(build: Callable[..., Any], torch: Any) -> Iterator[Any]:
    """A Mixtral of two layers, whose forward compiles as one graph; nothing compiled is left."""
    model = build("mixtral", layers=2)
    torch.compiler.reset()
    yield model
    assert_untouched(model)
    model._compiled_call_impl = None
    torch.compiler.reset()


def eager_ids(model: Any, path: Path, ids: Any, mask: Any) -> dict[int, Any]:
    """What an uncompiled forward is recorded as; that is held against routers elsewhere."""
    with record(model, path / "eager.moetrace"):
        model(ids, attention_mask=mask)
    trace = open_trace(path / "eager.moetrace")
    return {layer: trace.experts(layer) for layer in trace.layers}


COMPILED: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "wrapped": lambda torch, model, how: torch.compile(model, **how),
    "in place": lambda torch, model, how: (model.compile(**how), model)[1],
    "its call": lambda torch, model, how: torch.compile(model.__call__, **how),
    "a function around it": lambda torch, model, how: torch.compile(
        lambda *args, **kwargs: model(*args, **kwargs), **how
    ),
}


# Every way gives one graph: leave to break it changes nothing, so one way with leave is enough.
@pytest.mark.parametrize(
    ("way", "fullgraph"), [*((way, True) for way in COMPILED), ("wrapped", False)]
)
def test_compiled_while_recording(
    way: str, fullgraph: bool, model: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    ids, mask = padded
    expected = eager_ids(model, tmp_path, ids, mask)
    with torch.no_grad(), record(model, tmp_path / "t.moetrace") as recording:
        how = {"fullgraph": fullgraph, "backend": "aot_eager"}
        compiled = COMPILED[way](torch, model, how)
        for _ in range(3):
            compiled(ids, attention_mask=mask, use_cache=False)
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.tokens, recording.dropped, recording.error) == (3 * 17, 0, None)
    assert np.unique(trace.request).tolist() == list(range(9))
    for layer, one in expected.items():
        assert np.array_equal(trace.experts(layer), np.tile(one, (3, 1)))


def test_inductor_keeps_every_operator(
    model: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    ids, mask = padded
    expected = eager_ids(model, tmp_path, ids, mask)
    with torch.no_grad(), record(model, tmp_path / "t.moetrace", weights=True) as recording:
        compiled = torch.compile(model, fullgraph=True)
        for _ in range(2):
            compiled(ids, attention_mask=mask, use_cache=False)
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.tokens, recording.dropped, recording.error) == (2 * 17, 0, None)
    for layer, one in expected.items():
        # another order of floating point operations may turn a tie, and does nothing worse
        assert np.mean(trace.experts(layer) == np.tile(one, (2, 1))) > 0.95


def test_generate_that_compiles_its_decode_steps(
    model: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    from transformers import CompileConfig

    compile_config = CompileConfig(backend="aot_eager", fullgraph=True)
    compile_config._compile_all_devices = True  # generate compiles on accelerators alone
    options = {**GENERATE, "cache_implementation": "static"}
    ids, mask = padded
    eager = model.generate(ids, attention_mask=mask, **options)
    expected = record_generate(model, padded, tmp_path / "eager.moetrace", **options)
    trace = record_generate(
        model, padded, tmp_path / "t.moetrace", compile_config=compile_config, **options
    )
    vars(model).pop("_compiled_call", None)
    live = live_rows(eager, mask)
    assert trace.tokens == sum(int(np.asarray(rows).sum()) for rows in live)
    assert np.array_equal(trace.request, expected.request)
    assert np.array_equal(trace.position, expected.position)
    for layer in trace.layers:
        assert np.array_equal(trace.experts(layer), expected.experts(layer))


def record_generate(model: Any, padded: tuple[Any, Any], path: Path, **options: Any) -> Any:
    with record(model, path) as recording:
        model.generate(padded[0], attention_mask=padded[1], **options)
    assert (recording.error, recording.dropped) == (None, 0)
    return open_trace(path)


def test_a_loop_of_compiled_decode_steps_continues_its_requests(
    model: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    from transformers import DynamicCache

    ids = padded[0]
    with torch.no_grad(), record(model, tmp_path / "t.moetrace") as recording:
        compiled = torch.compile(model, backend="aot_eager")
        for _ in range(2):
            cache = DynamicCache(config=model.config)
            token = ids
            for _ in range(4):
                logits = compiled(token, past_key_values=cache).logits
                token = logits[:, -1:].argmax(-1)
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.dropped, recording.error, len(trace.requests)) == (0, None, 6)
    assert recording.prefill_tokens == 2 * 21 and recording.decode_tokens == 2 * 9
    assert trace.position[trace.request == 5].tolist() == list(range(10))


def test_compiled_before_recording_says_so(
    model: Any,
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        compiled(padded[0])
        with record(model, tmp_path / "t.moetrace") as recording:
            compiled(padded[0])
    assert recording.tokens == 0
    assert "compiled before recording began" in caplog.text
    assert len([r for r in caplog.records if r.name == "moeprof"]) == 1


def test_the_compiled_output_is_what_it_is_without_us(
    model: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    """While it is recorded, and after: code compiled while recording outlives it harmlessly."""
    with torch.no_grad():
        plain = torch.compile(model, backend="aot_eager", fullgraph=True)(padded[0]).logits
        torch.compiler.reset()
        with record(model, tmp_path / "t.moetrace"):
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            inside = compiled(padded[0]).logits
        outside = compiled(padded[0]).logits
    assert torch.equal(plain, inside) and torch.equal(plain, outside)
