"""Ways of running a model that must make no difference to what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.capture.layout import Layout
from moeprof.capture.recorder import RoutingRecorder, Written
from moeprof.trace import open_trace

from .conftest import Oracle

FAMILIES = ("m3", "qwen3", "mixtral")


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_implementations(
    implementation: str,
    family: str,
    build: Callable[[str], Any],
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
) -> None:
    model = build(family)
    before = model.config._experts_implementation
    model.set_experts_implementation(implementation)
    try:
        with (
            torch.no_grad(),
            Oracle(model) as oracle,
            record(model, tmp_path / "t.moetrace", weights=True) as recording,
        ):
            model(padded[0], attention_mask=padded[1])
    finally:
        model.set_experts_implementation(before)
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.tokens, recording.dropped, recording.error) == (17, 0, None)
    for layer in trace.layers:
        assert np.array_equal(trace.experts(layer), oracle.ids(layer, [padded[1]]))
        weights = oracle.weights(layer, [padded[1]])
        assert np.allclose(trace.weights(layer), weights, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right(
    family: str, build: Callable[[str], Any], tmp_path: Path, torch: Any
) -> None:
    model = build(family)
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with (
        torch.no_grad(),
        Oracle(model) as oracle,
        record(model, tmp_path / "t.moetrace") as recording,
    ):
        model(ids, attention_mask=mask)
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.tokens, recording.dropped) == (10, 0)
    assert trace.position.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    for layer in trace.layers:
        assert np.array_equal(trace.experts(layer), oracle.ids(layer, [mask]))


@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_decoding_records_its_candidates_too(
    family: str, build: Callable[[str], Any], tmp_path: Path, torch: Any
) -> None:
    model = build(family)
    prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    settings = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    path = tmp_path / "t.moetrace"
    with Oracle(model) as oracle, record(model, path, token_ids=True) as recording:
        out = model.generate(prompt, prompt_lookup_num_tokens=3, **settings)
    trace = open_trace(path)
    routed = sum(len(ids) for _, ids in oracle.calls[trace.layers[0]])
    assert (recording.tokens, recording.dropped) == (routed, 0)
    # The last row at every position is the token that was kept there.
    last = {int(place): row for row, place in enumerate(trace.position)}
    kept = [int(trace.token_id[last[place]]) for place in range(out.shape[1] - 1)]
    assert kept == out[0, :-1].tolist()


def test_an_assistant_does_not_stand_in_the_models_trace(
    build: Callable[[str], Any], tmp_path: Path, torch: Any
) -> None:
    model, assistant = build("mixtral"), build("qwen3")
    prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    with Oracle(model) as oracle, record(model, tmp_path / "t.moetrace") as recording:
        model.generate(
            prompt, assistant_model=assistant, max_new_tokens=6, eos_token_id=None, pad_token_id=0
        )
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.error, recording.dropped) == (None, 0)
    routed = np.concatenate([ids for _, ids in oracle.calls[0]])
    assert np.array_equal(trace.experts(0), routed)


def test_returned_sequences_are_requests(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "t.moetrace"
    with record(build("mixtral"), path, token_ids=True) as recording:
        out = build("mixtral").generate(
            padded[0],
            attention_mask=padded[1],
            num_return_sequences=2,
            do_sample=True,
            max_new_tokens=4,
            eos_token_id=None,
            pad_token_id=0,
        )
    trace = open_trace(path)
    assert (recording.prefill_tokens, recording.decode_tokens) == (2 * 17, 6 * 3)
    for request, sequence in enumerate(out):
        prompt = padded[0][request // 2][padded[1][request // 2] == 1].tolist()
        tokens = trace.token_id[trace.request == request].tolist()
        assert tokens == prompt + sequence[7:-1].tolist()


def test_layers_on_several_devices_are_put_together(torch: Any) -> None:
    # Two names of one processor are two devices to the recorder, as two GPUs would be.
    devices = [torch.device("cpu"), torch.device("cpu", 0), torch.device("cpu")]
    recorder = RoutingRecorder(devices, Layout(3, 2, weights=True))
    ids = torch.arange(3 * 4 * 2).view(3, 4, 2)
    for step in (4, 3):
        assert recorder.begin(step, torch.arange(step))
        for slot in range(3):
            recorder.write(slot, Written(ids[slot, :step], ids[slot, :step] / 32))
        routing = recorder.end()
        assert np.array_equal(routing["experts"], ids[:, :step].transpose(0, 1))
        assert np.array_equal(routing["weights"], ids[:, :step].transpose(0, 1) / 32)
        assert routing.recorded.all() and routing.token_ids.tolist() == list(range(step))


def test_a_layer_that_gave_too_many_or_too_few_rows_is_not_recorded(torch: Any) -> None:
    recorder = RoutingRecorder([torch.device("cpu")] * 3, Layout(3, 2))
    ids = torch.ones(4, 2, dtype=torch.int64)
    recorder.begin(4)
    recorder.write(0, Written(ids[:3]))
    for _ in range(2):
        recorder.write(1, Written(ids))
    for _ in range(2):
        recorder.write(2, Written(ids[:2]))  # in two parts
    assert recorder.end().recorded.tolist() == [[False, False, True]] * 4
