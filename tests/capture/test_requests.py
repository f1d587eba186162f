"""Positions, phases, requests and labels, under generate and in loops of bare forwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.trace import Phase, Trace, open_trace

from .conftest import Oracle, end_rows_at, live_rows

NO_STOP = {"eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.moetrace"


def assert_continuous(trace: Trace, request: int, prompt: int, tokens: int) -> None:
    """The request has positions 0 to tokens - 1 in order, the first `prompt` of them prefill."""
    mine = trace.request == request
    assert trace.position[mine].tolist() == list(range(tokens))
    expected = [Phase.PREFILL] * prompt + [Phase.DECODE] * (tokens - prompt)
    assert trace.phase[mine].tolist() == expected


def test_generate_of_a_padded_batch(m3: Any, padded: tuple[Any, Any], path: Path) -> None:
    with record(m3, path, labels=["one", "two"]):
        m3.generate(padded[0], attention_mask=padded[1], max_new_tokens=5, **NO_STOP)
    trace = open_trace(path)
    for request, prompt in enumerate((7, 4, 6)):
        assert_continuous(trace, request, prompt, prompt + 4)
    assert [r.label for r in trace.requests] == ["one", "two", None]
    assert [r.prompt_tokens for r in trace.requests] == [7, 4, 6]
    assert [r.output_tokens for r in trace.requests] == [5, 5, 5]
    assert all(r.arrival_s is not None and 0 <= r.arrival_s < 60 for r in trace.requests)
    assert np.unique(trace.step).tolist() == [0, 1, 2, 3, 4]


def test_rows_that_ended_are_no_traffic(m3: Any, padded: tuple[Any, Any], path: Path) -> None:
    ids, mask = padded
    ends = end_rows_at({1: 7, 2: 10})  # row 1 at its first token, row 2 at its fourth
    with Oracle(m3) as oracle, record(m3, path) as recording:
        out = m3.generate(ids, attention_mask=mask, max_new_tokens=8, logits_processor=ends)
    trace = open_trace(path)
    live = live_rows(out, mask)
    assert oracle.forwards == 8
    for layer in trace.layers:
        assert np.array_equal(trace.experts(layer), oracle.ids(layer, live))
    assert [r.output_tokens for r in trace.requests] == [8, 1, 4]
    assert_continuous(trace, 0, 7, 14)
    assert_continuous(trace, 1, 4, 4)
    assert_continuous(trace, 2, 6, 9)
    assert recording.dropped == 0


def test_padding_token_that_a_model_chooses_is_traffic(
    m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    forced = {"forced_bos_token_id": None, "suppress_tokens": list(range(1, 64))}
    with record(m3, path):
        out = m3.generate(padded[0], attention_mask=padded[1], max_new_tokens=4, **forced)
    assert (out[:, 7:] == 0).all()
    assert open_trace(path).tokens == 17 + 3 * 3


def test_rows_ended_by_another_criterion_are_no_traffic(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    from transformers import StoppingCriteria, StoppingCriteriaList

    class FirstRowAfterNine(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.tensor([input_ids.shape[1] >= 9, False, False])

    stop, never = StoppingCriteriaList([FirstRowAfterNine()]), end_rows_at({})
    settings = {"stopping_criteria": stop, "logits_processor": never, "max_new_tokens": 6}
    with record(m3, path):
        out = m3.generate(padded[0], attention_mask=padded[1], **settings)
    trace = open_trace(path)
    assert (out[0, 9:] == 0).all()
    assert_continuous(trace, 0, 7, 9)  # its last token was fed once, before the padding
    assert_continuous(trace, 1, 4, 9)


def test_calls_of_generate_are_requests_of_their_own(
    m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    with record(m3, path) as recording:
        recording.label = "a"
        m3.generate(padded[0], attention_mask=padded[1], max_new_tokens=2, **NO_STOP)
        recording.label = "b"
        m3.generate(padded[0][:1], max_new_tokens=2, **NO_STOP)
    trace = open_trace(path)
    assert [r.label for r in trace.requests] == ["a", "a", "a", "b"]
    assert_continuous(trace, 3, 7, 8)


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_bare_forward_loop(
    by: str, m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    from transformers import DynamicCache

    ids, mask = padded
    cache = DynamicCache(config=m3.config)
    with Oracle(m3) as oracle, record(m3, path), torch.no_grad():
        for _ in range(4):
            if by == "position":
                logits = m3(ids, mask, None, cache).logits
            else:
                logits = m3(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
            ids = logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
    trace = open_trace(path)
    for request, prompt in enumerate((7, 4, 6)):
        assert_continuous(trace, request, prompt, prompt + 3)
    assert [r.output_tokens for r in trace.requests] == [4, 4, 4]
    live = [padded[1]] + [np.ones((3, 1))] * 3
    assert np.array_equal(trace.experts(2), oracle.ids(2, live))


def test_a_cache_that_the_model_made_continues_its_requests(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    with record(m3, path), torch.no_grad():
        out = m3(padded[0])
        m3(padded[0][:, :1], past_key_values=out.past_key_values)
        m3(padded[0])
    trace = open_trace(path)
    assert_continuous(trace, 0, 7, 8)
    assert_continuous(trace, 5, 7, 7)
    assert len(trace.requests) == 6


def test_forwards_without_a_cache_are_requests_of_their_own(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    right_padded = padded[1].flip(1)
    with record(m3, path), torch.no_grad():
        m3(padded[0], attention_mask=right_padded, use_cache=False)
        m3(padded[0], attention_mask=right_padded, use_cache=False)
    trace = open_trace(path)
    assert len(trace.requests) == 6 and trace.tokens == 34
    assert_continuous(trace, 4, 4, 4)
    assert [r.output_tokens for r in trace.requests] == [None] * 6


def test_position_ids_that_are_passed_are_kept(
    build: Callable[[str], Any], padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    model, positions = build("qwen3"), torch.arange(20, 27)[None]
    with record(model, path), torch.no_grad():
        model(padded[0], position_ids=positions)
    trace = open_trace(path)
    assert trace.position[:7].tolist() == list(range(20, 27))
    assert (trace.phase == Phase.PREFILL).all()


def test_generate_on_a_filled_cache_goes_on_at_its_end(
    m3: Any, padded: tuple[Any, Any], path: Path, torch: Any
) -> None:
    ids, mask = padded
    settings = {"max_new_tokens": 3, "return_dict_in_generate": True, **NO_STOP}
    with record(m3, path):
        first = m3.generate(ids, attention_mask=mask, **settings)
        more = torch.cat([first.sequences, ids[:, -2:]], dim=1)
        longer = torch.cat([mask, mask.new_ones(3, 5)], dim=1)
        cache = first.past_key_values
        m3.generate(more, attention_mask=longer, past_key_values=cache, **settings)
    trace = open_trace(path)
    mine = trace.request == 4  # row 1 of the second turn: 4 + 3 + 2 tokens, 6 of them cached
    assert trace.position[mine].tolist() == [6, 7, 8, 9, 10]
    assert trace.phase[mine].tolist() == [0, 0, 0, 1, 1]
    assert (trace.requests[4].prompt_tokens, trace.requests[4].output_tokens) == (9, 3)


def test_chunked_prefill(m3: Any, padded: tuple[Any, Any], path: Path) -> None:
    from transformers import DynamicCache

    with record(m3, path):
        m3.generate(
            padded[0],
            attention_mask=padded[1],
            prefill_chunk_size=2,
            past_key_values=DynamicCache(config=m3.config),
            max_new_tokens=3,
            **NO_STOP,
        )
    trace = open_trace(path)
    for request, prompt in enumerate((7, 4, 6)):
        assert_continuous(trace, request, prompt, prompt + 2)
    assert [r.prompt_tokens for r in trace.requests] == [7, 4, 6]


def test_generate_without_a_cache_routes_everything_again(
    m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    ids, mask = padded
    ends = end_rows_at({1: 8})
    with Oracle(m3) as oracle, record(m3, path):
        m3.generate(
            ids, attention_mask=mask, max_new_tokens=4, use_cache=False, logits_processor=ends
        )
    live = []
    for forward in range(4):
        grown = np.concatenate([mask, np.ones((3, forward), int)], axis=1)
        grown[1, :] = grown[1, :] if forward < 2 else 0  # it chose its end in the second forward
        live.append(grown)
    trace = open_trace(path)
    assert np.array_equal(trace.experts(3), oracle.ids(3, live))
    assert trace.phase[trace.step == 3].tolist() == ([0] * 7 + [1] * 3) + ([0] * 6 + [1] * 3)
    assert [r.output_tokens for r in trace.requests] == [4, 2, 4]


def test_embeddings_as_input(m3: Any, padded: tuple[Any, Any], path: Path) -> None:
    embeds = m3.get_input_embeddings()(padded[0]).detach()
    with record(m3, path, token_ids=True):
        m3.generate(inputs_embeds=embeds, attention_mask=padded[1], max_new_tokens=3, **NO_STOP)
    trace = open_trace(path)
    assert_continuous(trace, 1, 4, 6)
    assert (trace.token_id[trace.phase == Phase.PREFILL] == -1).all()
    assert (trace.token_id[trace.phase == Phase.DECODE] >= 0).all()
    assert [r.output_tokens for r in trace.requests] == [3, 3, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["samples", "assisted"],
)
def test_other_ways_of_generating_record_right_ids(
    settings: dict[str, Any], m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    ids = padded[0][:1]
    with Oracle(m3) as oracle, record(m3, path) as recording:
        m3.generate(ids, max_new_tokens=5, **settings, **NO_STOP)
    trace = open_trace(path)
    assert recording.error is None and recording.dropped == 0
    for layer in trace.layers:
        everything = np.concatenate([call[1] for call in oracle.calls[layer]])
        assert np.array_equal(trace.experts(layer), everything)
    assert set(trace.position[trace.phase == Phase.PREFILL]) == set(range(7))
    assert trace.position[trace.phase == Phase.DECODE].min() == 7
    assert all(r.prompt_tokens == 7 and r.output_tokens == 5 for r in trace.requests)


def test_static_cache_padding_is_found_in_its_mask(
    m3: Any, padded: tuple[Any, Any], path: Path
) -> None:
    with record(m3, path):
        m3.generate(
            padded[0],
            attention_mask=padded[1],
            max_new_tokens=4,
            cache_implementation="static",
            **NO_STOP,
        )
    trace = open_trace(path)
    for request, prompt in enumerate((7, 4, 6)):
        assert_continuous(trace, request, prompt, prompt + 3)
