"""Continuous batching: tokens of many requests in one row, told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.trace import Phase, open_trace, validate_trace

PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18, 19]]
NEW_TOKENS = 6


@pytest.fixture
def generate(build: Callable[[str], Any], torch: Any) -> Callable[..., Any]:
    pytest.importorskip("transformers.generation.continuous_batching")
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = build("mixtral")

    def run(**settings: Any) -> Any:
        return model.generate_batch(
            PROMPTS,
            generation_config=GenerationConfig(
                max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0, do_sample=False
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=32, num_blocks=32, max_batch_tokens=8, use_cuda_graph=False, **settings
            ),
            progress_bar=False,
        )

    run.model = model  # type: ignore[attr-defined]
    return run


def test_every_request_has_its_own_tokens(generate: Any, tmp_path: Path, torch: Any) -> None:
    model = generate.model
    labels = ["a", "b", "c"]
    with record(model, tmp_path / "t.moetrace", labels=labels, token_ids=True) as recording:
        outputs = generate()
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.error, recording.dropped) == (None, 0)
    assert recording.prefill_tokens == sum(map(len, PROMPTS))
    assert recording.decode_tokens == len(PROMPTS) * (NEW_TOKENS - 1)
    assert not validate_trace(trace.path).problems
    by_label = dict(zip(labels, sorted(outputs), strict=True))
    for request in trace.requests:
        assert request.label is not None
        output = outputs[by_label[request.label]]
        prompt, mine = output.prompt_ids, trace.request == request.index
        sequence = prompt + output.generated_tokens[:-1]
        assert trace.token_id[mine].tolist() == sequence
        assert trace.position[mine].tolist() == list(range(len(sequence)))
        assert (trace.phase[mine] == Phase.PREFILL).sum() == len(prompt)
        assert (request.prompt_tokens, request.output_tokens) == (len(prompt), NEW_TOKENS)
    assert sorted(str(request.label) for request in trace.requests) == labels
    steps, sizes = np.unique(trace.step, return_counts=True)
    assert sizes.max() <= 8 and len(steps) < trace.tokens / 2  # requests share steps


def test_ids_are_those_of_the_same_sequence_alone(
    generate: Any, tmp_path: Path, torch: Any
) -> None:
    model = generate.model
    with record(model, tmp_path / "t.moetrace"):
        outputs = generate()
    trace = open_trace(tmp_path / "t.moetrace")
    first = max(outputs.values(), key=lambda output: len(output.prompt_ids))
    sequence = first.prompt_ids + first.generated_tokens[:-1]
    with torch.no_grad(), record(model, tmp_path / "alone.moetrace"):
        model(torch.tensor([sequence]))
    alone = open_trace(tmp_path / "alone.moetrace")
    for layer in trace.layers:
        mine = trace.experts(layer)[trace.request == 0]
        # another order of floating point operations may turn a tie, and does nothing worse
        assert np.mean(np.sort(mine) == np.sort(alone.experts(layer))) > 0.95


def test_another_model_is_not_recorded(
    generate: Any, build: Callable[[str], Any], tmp_path: Path
) -> None:
    with record(build("qwen3"), tmp_path / "t.moetrace") as recording:
        generate()
    assert (recording.tokens, recording.dropped, recording.error) == (0, 0, None)
