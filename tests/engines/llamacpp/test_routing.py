"""What is recorded from llama.cpp is what the routers chose: against transformers, and itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

WHY = "needs llama-cpp-python and gguf: bash tests/engines/llamacpp/run"
pytest.importorskip("llama_cpp", reason=WHY)
pytest.importorskip("gguf", reason=WHY)
torch = pytest.importorskip("torch", reason=WHY)

import moeprof  # noqa: E402
from moeprof.trace import Phase  # noqa: E402
from tests.engines.llamacpp.running import PROMPTS, SETTINGS, capture, read_whole  # noqa: E402

pytestmark = pytest.mark.engine

# Sums run in another order there and here: experts whose scores differ by less may change places.
# (With llama.cpp's default, a cache of 16-bit keys and values, 2 of 1464 did, at 2.3e-3 and less.)
NEAR = 5e-4
EXTRAS: dict[str, Any] = {"margins": True, "weights": True}


@pytest.mark.parametrize("family", ["m3", "qwen3"])
def test_ids_are_those_of_transformers(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same weights in float32: every layer, token and phase, several micro-batches a prompt."""
    path, model = (request.getfixturevalue(name) for name in (family, f"{family}_model"))
    ours = capture(path, tmp_path / "l.moetrace", cache_type="f32", token_ids=True, **EXTRAS)
    assert ours.layers == tuple(range(family == "m3", model.config.num_hidden_layers))
    ties = seen = 0
    for number in range(len(PROMPTS)):
        rows = np.flatnonzero(ours.request == number)
        theirs = run_transformers(model, ours.token_id[rows], tmp_path / f"{number}.moetrace")
        assert theirs.layers == ours.layers
        alike = np.ones(len(rows), bool)  # a token that went elsewhere once is another from then on
        for layer in ours.layers:
            mine, due = ours.experts(layer)[rows], theirs.experts(layer)
            order, due_order = np.argsort(mine, axis=1), np.argsort(due, axis=1)
            same = (np.sort(mine, axis=1) == np.sort(due, axis=1)).all(axis=1)
            margin = theirs.margins(layer)
            assert (margin[alike & ~same] < NEAR).all()
            ties, seen = ties + int((~same).sum()), seen + len(rows)
            alike &= same
            given = np.take_along_axis(ours.weights(layer)[rows], order, axis=1)[alike]
            expected = np.take_along_axis(theirs.weights(layer), due_order, axis=1)[alike]
            np.testing.assert_allclose(given, expected, atol=3e-3)
            np.testing.assert_allclose(ours.margins(layer)[rows][alike], margin[alike], atol=3e-3)
    assert ties <= 0.005 * seen


def run_transformers(model: Any, token_ids: Any, path: Path) -> moeprof.Trace:
    ids = torch.tensor(token_ids.astype(np.int64))[None]
    with torch.inference_mode(), moeprof.record(model, path, **EXTRAS):
        model(ids)
    return moeprof.open_trace(path)


def test_ids_are_the_highest_scores_of_the_same_run(m3: Path, tmp_path: Path) -> None:
    """No tolerance: the biased scores of every expert, read by llama.cpp's own accessors."""
    options = {"token_ids": True, "batch": 512, "micro_batch": 512, "prompts": PROMPTS[1:2]}
    ours = capture(m3, tmp_path / "t.moetrace", **options)
    prefill = ours.phase == Phase.PREFILL
    tokens = ours.token_id[prefill].tolist()
    names = {f"ffn_moe_probs_biased-{layer}" for layer in ours.layers}
    scores = read_whole(m3, tokens, names)
    assert set(scores) == names
    for layer in ours.layers:
        ranked = np.argsort(-scores[f"ffn_moe_probs_biased-{layer}"], axis=1, kind="stable")
        assert (ours.experts(layer)[prefill] == ranked[:, :4]).all()


def test_llama_cpp_hands_over_views(m3: Path, tmp_path: Path) -> None:
    """A contiguous reading of the same memory gives other experts from the second token on."""
    options = {"token_ids": True, "batch": 512, "micro_batch": 512, "prompts": PROMPTS[1:2]}
    ours = capture(m3, tmp_path / "t.moetrace", **options)
    prefill = ours.phase == Phase.PREFILL
    names = {f"ffn_moe_topk-{layer}" for layer in ours.layers}
    wrong = read_whole(m3, ours.token_id[prefill].tolist(), names)
    for layer in ours.layers:
        right, contiguous = ours.experts(layer)[prefill], wrong[f"ffn_moe_topk-{layer}"]
        assert (right[0] == contiguous[0]).all()
        assert (right[1:] != contiguous[1:]).any(axis=1).all()


def test_positions_phases_steps_and_requests(m3: Path, tmp_path: Path) -> None:
    trace = capture(m3, tmp_path / "t.moetrace", token_ids=True)
    step = 0
    for number, (prompt, request) in enumerate(zip(PROMPTS, trace.requests, strict=True)):
        rows = np.flatnonzero(trace.request == number)
        before, generated = request.prompt_tokens, request.output_tokens
        assert request.label == prompt.label and 1 <= generated <= SETTINGS["max_new_tokens"]
        assert len(rows) == before + generated - 1  # the last token is never routed
        assert trace.position[rows].tolist() == list(range(len(rows)))
        phases = [Phase.PREFILL] * before + [Phase.DECODE] * (generated - 1)
        assert trace.phase[rows].tolist() == phases
        due = []
        for start in range(0, before, 32):  # a call of 32 is graphs of 8
            call = min(32, before - start)
            due += [step + at // 8 for at in range(call)]
            step = due[-1] + 1
        due += range(step, step + generated - 1)
        step += generated - 1
        assert trace.step[rows].tolist() == due
    assert not moeprof.validate_trace(tmp_path / "t.moetrace").problems


def test_sizes_of_batches_do_not_matter(m3: Path, tmp_path: Path) -> None:
    """One graph a prompt, or many: near ties apart, a token goes where it goes."""
    many = capture(m3, tmp_path / "many.moetrace", margins=True)
    one = capture(m3, tmp_path / "one.moetrace", batch=512, micro_batch=512)
    for layer in many.layers:
        same = (many.experts(layer) == one.experts(layer)).all(axis=1)
        assert (many.margins(layer)[~same] < NEAR).all() or same.mean() > 0.99


def test_the_last_layer_is_recorded_whole_or_not_at_all(m3: Path, tmp_path: Path) -> None:
    """With last_layer="output" prompt tokens are null in it, never expert 0."""
    whole = capture(m3, tmp_path / "whole.moetrace")
    part = capture(m3, tmp_path / "part.moetrace", last_layer="output")
    *others, last = whole.layers
    for layer in others:
        assert whole.recorded(layer).all() and part.recorded(layer).all()
        assert (whole.experts(layer) == part.experts(layer)).mean() > 0.99
    due = whole.phase == Phase.DECODE
    for number, request in enumerate(whole.requests):
        due |= (whole.request == number) & (whole.position == request.prompt_tokens - 1)
    assert whole.recorded(last).all() and (part.recorded(last) == due).all()
    assert (part.experts(last) == whole.experts(last)[due]).mean() > 0.99
