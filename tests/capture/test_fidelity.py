"""The trace holds what the routers returned, and the model does not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.trace import open_trace, validate_trace

from .conftest import MOE_FAMILIES, Oracle, assert_untouched, live_rows

NO_STOP = {"eos_token_id": None, "pad_token_id": 0}


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_ids_are_those_the_router_returned_for_one_prompt(
    family: str, build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path
) -> None:
    model, (ids, mask) = build(family), padded
    with Oracle(model) as oracle, record(model, tmp_path / "t.moetrace") as recording:
        out = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=6, **NO_STOP)
    assert_untouched(model)
    trace = open_trace(tmp_path / "t.moetrace")
    live = live_rows(out, mask[:1])
    assert (recording.tokens, recording.dropped) == (12, 0)
    assert list(trace.layers) == sorted(oracle.calls)
    for layer in trace.layers:
        assert np.array_equal(trace.experts(layer), oracle.ids(layer, live))
    assert not validate_trace(tmp_path / "t.moetrace").problems


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_padding_is_no_traffic_in_a_batch(
    family: str, build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path
) -> None:
    model, (ids, mask) = build(family), padded
    with (
        Oracle(model) as oracle,
        record(model, tmp_path / "t.moetrace", weights=True, token_ids=True) as recording,
    ):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=5, **NO_STOP)
    trace = open_trace(tmp_path / "t.moetrace")
    live = live_rows(out, mask)
    assert (recording.prefill_tokens, recording.decode_tokens) == (17, 12)
    for layer in trace.layers:
        assert np.array_equal(trace.experts(layer), oracle.ids(layer, live))
        assert np.array_equal(trace.weights(layer), oracle.weights(layer, live).astype(np.float16))
    for row in range(3):
        sequence = out[row][7 - int(mask[row].sum()) :]
        assert trace.token_id[trace.request == row].tolist() == sequence[:-1].tolist()


def test_a_batch_row_routes_as_it_does_alone(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path
) -> None:
    # Not with M3: its indexer takes padding columns for keys, so padding changes what it computes.
    model, (ids, mask) = build("qwen3"), padded
    with record(model, tmp_path / "batch"):
        model.generate(ids, attention_mask=mask, max_new_tokens=5, **NO_STOP)
    with record(model, tmp_path / "alone"):
        for row in range(3):
            real = ids[[row]][:, mask[row] == 1]
            model.generate(real, attention_mask=real * 0 + 1, max_new_tokens=5, **NO_STOP)
    batch, alone = open_trace(tmp_path / "batch"), open_trace(tmp_path / "alone")
    for row in range(3):
        ours, theirs = batch.request == row, alone.request == row
        assert batch.position[ours].tolist() == alone.position[theirs].tolist()
        assert batch.phase[ours].tolist() == alone.phase[theirs].tolist()
        for layer in batch.layers:
            assert np.array_equal(batch.experts(layer)[ours], alone.experts(layer)[theirs])


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_logits_and_generation_are_bit_identical(
    family: str,
    build: Callable[[str], Any],
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
) -> None:
    model, (ids, mask) = build(family), padded

    def run() -> tuple[Any, ...]:
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
            **NO_STOP,
        )
        return logits, out.sequences, *out.logits

    plain = run()
    with record(model, tmp_path / "t.moetrace", weights=True):
        watched = run()
    again = run()
    for a, b, c in zip(plain, watched, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_gradients_are_not_disturbed(
    m3: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    ids, mask = padded

    def gradients() -> list[Any]:
        m3.zero_grad()
        m3(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        return [p.grad.clone() for p in m3.parameters() if p.grad is not None]

    plain = gradients()
    with record(m3, tmp_path / "t.moetrace", weights=True) as recording:
        watched = gradients()
    m3.zero_grad()
    assert recording.tokens == 17 and recording.error is None
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_buffers_serve_inside_and_outside_of_inference_mode(
    m3: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    ids, _ = padded
    with record(m3, tmp_path / "t.moetrace") as recording:
        with torch.inference_mode():
            m3(ids)
        m3(ids)
    assert (recording.tokens, recording.dropped) == (42, 0)


def test_ids_of_a_layer_on_the_meta_of_an_offloader_stay_right(
    m3: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    # As accelerate does it: the router's weights appear only for its forward.
    router = m3.model.layers[1].mlp.gate
    weight = router.weight
    router.weight = torch.nn.Parameter(weight.detach().to("meta"))
    with Oracle(m3) as oracle, record(m3, tmp_path / "t.moetrace"):
        router.weight = weight
        m3(padded[0])
    assert np.array_equal(
        open_trace(tmp_path / "t.moetrace").experts(1), oracle.ids(1, [np.ones((3, 7))])
    )


def test_the_inner_model_can_be_recorded(m3: Any, padded: tuple[Any, Any], tmp_path: Path) -> None:
    with Oracle(m3) as oracle, record(m3.model, tmp_path / "t.moetrace") as recording:
        m3.model(padded[0], attention_mask=padded[1])
    assert recording.tokens == 17
    assert np.array_equal(
        open_trace(tmp_path / "t.moetrace").experts(3), oracle.ids(3, [padded[1]])
    )


@pytest.mark.parametrize("asked", [False, True])
def test_no_token_id_is_on_disk_unless_it_was_asked_for(
    asked: bool, m3: Any, torch: Any, tmp_path: Path
) -> None:
    ids = torch.tensor([[11, 7, 23, 5, 42, 17, 31, 2]])
    with record(m3, tmp_path / "t", token_ids=asked, labels="a label") as recording:
        m3.generate(ids, max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    assert recording.error is None and recording.tokens == 11
    files = [file.read_bytes() for file in (tmp_path / "t").rglob("*") if file.is_file()]
    for kind in (np.int64, np.int32, np.int16):
        found = any(ids.numpy().astype(kind).tobytes() in content for content in files)
        assert found == (asked and kind is np.int32)
