"""Layer by layer gives what the whole model gives: every layer, every token."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeprof
from moeprof.capture import Prompt, read_prompts, record
from moeprof.capture.stream.chunks import Chunks
from moeprof.capture.transformers.run import torch_threads
from moeprof.trace import Trace, open_trace, validate_trace

from .models import STREAMED, load, make, save, text_of

LENGTHS = (5, 45, 1, 17)  # no two alike: then a forward of ours has the shape of the model's own
CUT = 7  # tokens at a time: longer than windows and blocks, and divides no length
NO_STOP = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def saved(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the checkpoint of a family."""
    root, done = tmp_path_factory.mktemp("checkpoints"), {}

    def get(family: str) -> Path:
        if family not in done:
            done[family] = save(make(family), root / family)
            assert len(list(done[family].glob("*.safetensors"))) > 1
        return done[family]

    return get


def sequences(*lengths: int) -> list[Any]:
    import torch

    source = torch.Generator().manual_seed(1)
    return [torch.randint(3, 56, (1, length), generator=source) for length in lengths]


def prompts_of(ids: list[Any]) -> list[Prompt]:
    return [Prompt(text_of(row[0]), label=f"d{len(row[0])}") for row in ids]


def assert_same_rows(one: Trace, other: Trace, *, routing: bool = True) -> None:
    """Every column of every token, bit for bit; without `routing` all but what routers decided."""
    assert len(one.step) == len(other.step) > 0 and one.layers == other.layers
    for name in ("step", "request", "position", "phase"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for layer in one.layers if routing else ():
        assert np.array_equal(one.experts(layer), other.experts(layer)), layer
        for name in ("weights", "margins"):
            mine, its = getattr(one, name)(layer), getattr(other, name)(layer)
            assert np.array_equal(mine, its, equal_nan=True), (name, layer)


@pytest.mark.parametrize("family", STREAMED)
def test_the_trace_is_the_one_that_hooks_give(
    saved: Callable[[str], Path],
    family: str,
    tmp_path: Path,
    torch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, and where texts are cut into pieces but for near ties."""
    ids, folder = sequences(*LENGTHS), saved(family)
    model, extras = load(folder), {"weights": True, "margins": True}
    with record(model, tmp_path / "hooks", **extras) as done, torch.no_grad():
        for row in ids:
            model(input_ids=row, use_cache=False)
    assert done.error is None
    asked = {**extras, "device": "cpu", "dtype": "float32"}
    result = moeprof.stream(folder, prompts_of(ids), tmp_path / "t", **asked)
    streamed, hooks = open_trace(tmp_path / "t"), open_trace(tmp_path / "hooks")
    assert_same_rows(streamed, hooks)
    assert validate_trace(tmp_path / "t").problems == []
    assert result.tokens == sum(LENGTHS) == result.prefill_tokens
    assert result.bytes_read > 0 and result.peak_memory_bytes > 0
    assert not (tmp_path / "t.stream").exists()
    cut_all_texts(monkeypatch)
    moeprof.stream(folder, prompts_of(ids), tmp_path / "cut", **asked)
    assert_near_ties_alone_differ(open_trace(tmp_path / "cut"), hooks)


def cut_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on they run CUT tokens at a time."""

    def plan(needs: Any, longest: int, opened: Any, expert_bytes: int) -> Chunks:
        full = replace(needs, budget_bytes=needs.fixed_bytes)
        return Chunks(full, longest, 0, dict.fromkeys(range(opened.places.last + 1), CUT))

    monkeypatch.setattr("moeprof.capture.stream.run.plan_chunks", plan)


def assert_near_ties_alone_differ(one: Trace, hooks: Trace) -> None:
    """Sums are taken in another order."""
    assert_same_rows(one, hooks, routing=False)
    for layer in hooks.layers:
        same = (np.sort(one.experts(layer)) == np.sort(hooks.experts(layer))).all(axis=1)
        assert (np.asarray(hooks.margins(layer))[~same] < 1e-4).all()
        assert same.mean() > 0.9


@pytest.mark.parametrize("family", ["m3", "deepseek_v3"])
def test_given_completions_are_what_generate_routes(
    saved: Callable[[str], Path], family: str, tmp_path: Path, torch: Any
) -> None:
    ids, folder = sequences(*LENGTHS), saved(family)
    model = load(folder)
    wanted = []
    with record(model, tmp_path / "hooks", margins=True) as done, torch.no_grad():
        for row in ids:
            out = model.generate(row, attention_mask=torch.ones_like(row), **NO_STOP)
            wanted.append(Prompt(text_of(row[0]), completion=text_of(out[0, row.shape[1] :])))
    assert done.error is None
    moeprof.stream(folder, wanted, tmp_path / "t", device="cpu", dtype="float32")
    streamed = open_trace(tmp_path / "t")
    assert_near_ties_alone_differ(streamed, open_trace(tmp_path / "hooks"))
    assert [r.output_tokens for r in streamed.requests] == [5] * len(ids)


def test_equal_lengths_run_together(
    saved: Callable[[str], Path], tmp_path: Path, torch: Any
) -> None:
    ids, folder = sequences(7, 4, 7, 7), saved("m3")
    model = load(folder)
    with record(model, tmp_path / "hooks", weights=True), torch.no_grad():
        for row in ids:
            model(input_ids=row, use_cache=False)
    moeprof.stream(folder, prompts_of(ids), tmp_path / "t", device="cpu", dtype="float32")
    one, other = open_trace(tmp_path / "t"), open_trace(tmp_path / "hooks")
    for layer in one.layers:
        assert np.array_equal(one.experts(layer), other.experts(layer))


def test_the_shipped_model_gives_the_recording_that_hooks_give(tmp_path: Path, torch: Any) -> None:
    folder = Path(moeprof.__file__).parent / "demo" / "tiny_m3"
    every = 1 if os.environ.get("MOEPROF_PROMPTS") == "all" else 8  # 8: one of each of 7 kinds
    prompts = read_prompts(folder / "prompts.jsonl")[::every]
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, extras = load(folder), {"weights": True, "margins": True, "token_ids": True}
    ids = [tokenizer(prompt.text, return_tensors="pt")["input_ids"] for prompt in prompts]
    labels = [prompt.label for prompt in prompts]
    with (
        torch_threads(1),  # small products: threads would wait for each other
        record(model, tmp_path / "hooks", labels=labels, **extras),
        torch.no_grad(),
    ):
        for row in ids:
            model(input_ids=row, use_cache=False)
    asked = {**extras, "device": "cpu", "dtype": "float32", "batch_size": 1, "threads": 1}
    moeprof.stream(folder, prompts, tmp_path / "t", **asked)
    one, other = open_trace(tmp_path / "t"), open_trace(tmp_path / "hooks")
    assert len(one.requests) == 56 // every
    assert_same_rows(one, other)
    assert np.array_equal(one.token_id, other.token_id)
    assert [r.label for r in one.requests] == [r.label for r in other.requests]
