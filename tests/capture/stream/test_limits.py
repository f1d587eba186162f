"""What a run takes stays within its bounds, and a disk that fills up costs no layer."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeprof
from moeprof.capture import Prompt, record
from moeprof.capture.stream.needs import resident_bytes
from moeprof.errors import MoeprofError
from moeprof.trace import open_trace

from .models import load, make, save, text_of

MIB = 1 << 20
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(scope="module")
def folder(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("m3"), tmp_path_factory.mktemp("checkpoint") / "m3")


def trimmed_bytes() -> int:
    """What this process holds, once the C library has given back what earlier tests left free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def texts(*lengths: int) -> list[Prompt]:
    random = np.random.default_rng(1)
    return [Prompt(text_of(random.integers(3, 56, length))) for length in lengths]


def test_the_peak_stays_under_a_budget_that_the_model_exceeds(torch: Any, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    moe = {"num_local_experts": 8, "num_experts_per_tok": 2, "dtype": "float32"}
    model = MixtralForCausalLM(MixtralConfig(**shape, **heads, **moe))
    stored = sum(parameter.nbytes for parameter in model.parameters())
    checkpoint = save(model, tmp_path / "model", shard="40MB")
    del model
    budget = resident_bytes() + 100 * MIB
    assert stored > 2 * 100 * MIB
    result = moeprof.stream(
        checkpoint,
        texts(40, 40, 17),
        tmp_path / "t",
        device="cpu",
        threads=1,
        memory_bytes=budget,
    )
    assert 0 < result.peak_memory_bytes <= budget
    assert result.layers == 12 and result.bytes_read > stored * 0.9


def test_a_long_text_is_cut_to_stay_under_a_budget(torch: Any, tmp_path: Path) -> None:
    """M3's sparse attention, whose masks of the whole would take twice the room."""
    model = make("m3")
    model.config.max_position_embeddings = 4096
    checkpoint, prompts = save(model, tmp_path / "model"), texts(1600, 40)
    said: list[str] = []
    asked: dict[str, Any] = {"device": "cpu", "threads": 1, "margins": True}
    room = 64 * MIB
    budget = trimmed_bytes() + room
    cut = moeprof.stream(
        checkpoint, prompts, tmp_path / "t", memory_bytes=budget, progress=said.append, **asked
    )
    assert "1,600 tokens go through a layer" in said[0]
    assert 0 < cut.peak_memory_bytes <= budget
    before = trimmed_bytes()
    whole = moeprof.stream(checkpoint, prompts, tmp_path / "whole", **asked)
    assert whole.peak_memory_bytes - before > room
    one, other = open_trace(tmp_path / "t"), open_trace(tmp_path / "whole")
    for layer in other.layers:
        same = (np.sort(one.experts(layer)) == np.sort(other.experts(layer))).all(axis=1)
        assert same.mean() > 0.999
        assert (np.asarray(other.margins(layer))[~same] < 1e-4).all()


@pytest.mark.parametrize("family", ["m3", "gpt_oss"])
def test_the_estimate_for_whole_texts_is_above_the_count(
    family: str, torch: Any, tmp_path: Path
) -> None:
    """Sparse attention's masks, and scores with sinks."""
    from moeprof.capture.stream.activations import Activations
    from moeprof.capture.stream.opening import open_model
    from moeprof.capture.stream.run import _activations, _expert_bytes

    opened = open_model(save(make(family), tmp_path / "model"), "cpu", "float32")
    token_bytes, pair_bytes = _activations(opened)
    counted = Activations(opened, _expert_bytes(opened)).nbytes(3, 512, 512)
    assert 512 * (token_bytes + 512 * pair_bytes) >= counted > 512 * 512 * 4 * 4


@pytest.mark.parametrize("family", ["m3", "deepseek_v3"])
def test_in_bfloat16_near_ties_alone_may_differ(family: str, torch: Any, tmp_path: Path) -> None:
    """Texts that run together are summed in another order."""
    checkpoint, prompts = save(make(family), tmp_path / "model"), texts(*[24] * 6)
    model = load(checkpoint).to(torch.bfloat16)
    with record(model, tmp_path / "hooks", margins=True) as done, torch.no_grad():
        for prompt in prompts:
            ids = [int(word[1:]) for word in prompt.text.split()]
            model(input_ids=torch.tensor([ids]), use_cache=False)
    assert done.error is None
    moeprof.stream(checkpoint, prompts, tmp_path / "t", device="cpu", dtype="bfloat16")
    streamed, hooks = open_trace(tmp_path / "t"), open_trace(tmp_path / "hooks")
    for layer in hooks.layers:
        same = (np.sort(streamed.experts(layer)) == np.sort(hooks.experts(layer))).all(axis=1)
        assert same.mean() > 0.9
        assert (np.asarray(hooks.margins(layer))[~same] < 0.02).all()


def test_a_disk_that_fills_up_costs_no_layer(
    folder: Path, small_disk: Path, tmp_path: Path
) -> None:
    """The same command goes on where it was once there is room."""
    prompts, other = texts(60, 50, 45), small_disk / "other"
    moeprof.stream(folder, prompts, tmp_path / "whole", device="cpu", weights=True)

    def fill(line: str) -> None:
        if line.startswith("layer 1 of"):
            with other.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

    with pytest.raises(MoeprofError, match=r"No space left.*run the same command again"):
        stream_to(small_disk, folder, prompts, fill)
    for path in (small_disk / "t.stream", *(small_disk / "t.stream").iterdir()):
        assert not path.stat().st_mode & OTHERS, path
    other.unlink()
    said: list[str] = []
    stream_to(small_disk, folder, prompts, said.append)
    assert any(line.startswith("goes on at layer") for line in said)
    one, whole = open_trace(small_disk / "t"), open_trace(tmp_path / "whole")
    for layer in whole.layers:
        assert np.array_equal(one.experts(layer), whole.experts(layer))
        assert np.array_equal(one.weights(layer), whole.weights(layer))


def stream_to(disk: Path, folder: Path, prompts: list[Prompt], progress: Any) -> None:
    moeprof.stream(folder, prompts, disk / "t", device="cpu", weights=True, progress=progress)
