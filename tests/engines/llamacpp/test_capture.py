"""The capture round it: output as without us, limits, failures, what is refused, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WHY = "needs llama-cpp-python and gguf: bash tests/engines/llamacpp/run"
llama_cpp = pytest.importorskip("llama_cpp", reason=WHY)
pytest.importorskip("gguf", reason=WHY)
pytest.importorskip("torch", reason=WHY)

import moeprof  # noqa: E402
from moeprof.capture import Prompt  # noqa: E402
from moeprof.capture.llamacpp import ggml  # noqa: E402
from moeprof.capture.llamacpp.engine import Engine  # noqa: E402
from moeprof.capture.llamacpp.reading import LogReader  # noqa: E402
from moeprof.capture.llamacpp.tap import Tap, compiled_callback, wanted_results  # noqa: E402
from moeprof.errors import InputError, MoeprofError  # noqa: E402
from moeprof.model.gguf import BLOCKS  # noqa: E402
from moeprof.model.gguf_model import read_gguf_model  # noqa: E402
from moeprof.trace import Phase  # noqa: E402
from tests.engines.llamacpp.gguf_files import write_m3  # noqa: E402
from tests.engines.llamacpp.running import (  # noqa: E402
    PROMPTS,
    SETTINGS,
    capture,
    tokens_without_us,
)

pytestmark = pytest.mark.engine


def split(trace: moeprof.Trace) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and routed new tokens (all but the last) of every request, from the token ids."""
    prompts, new = [], []
    for number, request in enumerate(trace.requests):
        ids = trace.token_id[trace.request == number].tolist()
        prompts.append(ids[: request.prompt_tokens])
        new.append(ids[request.prompt_tokens :])
    return prompts, new


def test_the_model_says_what_it_says_without_us(m3: Path, tmp_path: Path) -> None:
    trace = capture(m3, tmp_path / "t.moetrace", token_ids=True, weights=True, margins=True)
    prompts, new = split(trace)
    assert [ids[:-1] for ids in tokens_without_us(m3, prompts)] == new


def test_it_says_what_llama_cpp_pythons_own_class_says(m3: Path, tmp_path: Path) -> None:
    prompts, new = split(capture(m3, tmp_path / "t.moetrace", token_ids=True))
    with closing(llama_cpp.Llama(str(m3), n_ctx=512, n_threads=1, verbose=False)) as llama:
        for prompt, ours in zip(prompts, new, strict=True):
            theirs = list(zip(range(len(ours)), llama.generate(prompt, temp=0.0), strict=False))
            assert [token for _, token in theirs] == ours


@pytest.mark.parametrize("fails_at", [0, 1, 30])
def test_an_error_of_ours_ends_the_recording_and_nothing_else(
    m3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    trace = capture(m3, tmp_path / "good.moetrace", token_ids=True)
    due = [token for ids in tokens_without_us(m3, split(trace)[0]) for token in ids]
    spoken: list[int] = []
    sample, read, calls = Engine.sample, LogReader.read, 0

    def failing(reader: LogReader, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise RuntimeError("text of a prompt")
        return read(reader, *given)

    def listening(engine: Engine) -> int:
        spoken.append(sample(engine))
        return spoken[-1]

    monkeypatch.setattr(LogReader, "read", failing)
    monkeypatch.setattr(Engine, "sample", listening)
    with pytest.raises(MoeprofError, match=r"reading llama\.cpp's routers failed") as caught:
        capture(m3, tmp_path / "bad.moetrace")
    assert "text of a prompt" not in str(caught.value) and "\n" not in str(caught.value)
    assert spoken == due
    bad = moeprof.open_trace(tmp_path / "bad.moetrace")
    assert bad.tokens + sum(bad.dropped.values()) == trace.tokens
    assert not moeprof.validate_trace(tmp_path / "bad.moetrace").problems


def test_a_log_without_room_is_counted(
    m3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if llama.cpp computed more than was expected: nothing is written beyond the memory."""
    whole = capture(m3, tmp_path / "whole.moetrace", token_ids=True)
    make = Tap.__init__

    def small(tap: Tap, *given: Any) -> None:
        make(tap, *given)
        tap._head["size"] = 8 * 500  # a decode step fits, a micro-batch of a prompt does not

    monkeypatch.setattr(Tap, "__init__", small)
    trace = capture(m3, tmp_path / "t.moetrace", token_ids=True)
    assert (trace.phase == Phase.DECODE).sum() == (whole.phase == Phase.DECODE).sum()
    assert trace.tokens + sum(trace.dropped.values()) == whole.tokens
    assert set(trace.dropped) == {"llama.cpp computed more than was expected"}


def test_ctrl_c_leaves_a_whole_trace(
    m3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, calls = Engine.sample, 0

    def interrupted(engine: Engine) -> int:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return sample(engine)

    monkeypatch.setattr(Engine, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(m3, tmp_path / "t.moetrace")
    trace = moeprof.open_trace(tmp_path / "t.moetrace")
    assert trace.manifest.complete and trace.tokens > 0
    assert not moeprof.validate_trace(tmp_path / "t.moetrace").problems


def test_what_runs_outside_of_a_request_is_not_traffic(m3: Path) -> None:
    """A warm-up: the callback is there, nobody has begun."""
    gguf = read_gguf_model(m3)
    tap = Tap(compiled_callback(ggml.Ggml()), gguf.model, wanted_results(gguf.model), 64)
    with closing(Engine(m3)) as engine:
        engine.open_context(
            context=256,
            batch=64,
            micro_batch=64,
            threads=1,
            callback=tap.callback,
        )
        engine.start(None)
        engine.decode([3, 4, 5], 0, np.ones(3, bool))
        assert tap.end() is None
        tap.begin()
        engine.decode([6, 7], 3, np.ones(2, bool))
        log = tap.end()
    assert log is not None
    found = LogReader(gguf.model, wanted_results(gguf.model)).read(log, 2, np.ones(2, bool))
    assert found.recorded.all() and found.forwards == (2,)


def test_the_compiled_callback_is_kept_on_disk() -> None:
    library = ggml.Ggml()
    compiled_callback(library)
    assert compiled_callback(library).cache_hits == 1


def test_a_broken_numba_is_said_before_the_model_is_loaded(
    m3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moeprof.capture.llamacpp.kernels", None)
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"cannot be compiled, Numba fails .*pip install"):
        capture(m3, tmp_path / "t.moetrace")
    assert not (tmp_path / "t.moetrace").exists()


def test_sampling_is_by_seed(m3: Path, tmp_path: Path) -> None:
    def spoken(name: str, **options: Any) -> list[list[int]]:
        trace = capture(m3, tmp_path / name, token_ids=True, sample=True, **options)
        return split(trace)[1]

    first = spoken("a", seed=1, temperature=2.0)
    assert spoken("b", seed=1, temperature=2.0) == first
    assert spoken("c", seed=2, temperature=2.0) != first
    assert (
        spoken("d", seed=1, temperature=0.0)
        == split(capture(m3, tmp_path / "e", token_ids=True))[1]
    )
    alone = spoken("f", seed=1, temperature=2.0, prompts=PROMPTS[:1])
    assert alone == first[:1]  # whatever else was asked for


def test_same_run_same_bytes(m3: Path, tmp_path: Path) -> None:
    one, two = (capture(m3, tmp_path / name, weights=True) for name in ("a", "b"))
    for layer in one.layers:
        assert (one.experts(layer) == two.experts(layer)).all()
        assert (one.weights(layer) == two.weights(layer)).all()


def test_limits(m3: Path, tmp_path: Path) -> None:
    whole = capture(m3, tmp_path / "whole")
    prompts = PROMPTS * 4
    part = moeprof.capture_llamacpp(
        m3, prompts, tmp_path / "part", sample_requests=0.5, seed=3, **SETTINGS
    )
    trace = moeprof.open_trace(tmp_path / "part")
    kept = np.unique(trace.request)
    assert 0 < len(kept) < len(prompts) and part.tokens + part.sampled_out == 4 * whole.tokens
    for number in kept:  # each is whole
        assert (trace.request == number).sum() == (whole.request == number % 3).sum()
    ended = moeprof.capture_llamacpp(m3, prompts * 50, tmp_path / "d", duration_s=0.3, **SETTINGS)
    assert 0 < ended.requests < len(prompts) * 50


def test_experts_take_what_their_types_take(m3_model: Any, m3: Path, tmp_path: Path) -> None:
    """Quantized by gguf-py, whose file sizes are the judge; and recorded all the same."""
    assert read_gguf_model(m3).expert_bytes == dict.fromkeys(range(1, 9), 3 * 96 * 24 * 4)
    half = write_m3(tmp_path / "f16.gguf", m3_model, "F16")
    found = read_gguf_model(half).expert_bytes
    assert found == dict.fromkeys(range(1, 9), 3 * 96 * 24 * 2)
    saved = sum(read_gguf_model(m3).expert_bytes.values()) - sum(found.values())
    assert m3.stat().st_size - half.stat().st_size == saved * 64
    assert capture(half, tmp_path / "t").manifest.expert_bytes == found


def test_blocks_are_those_of_the_library() -> None:
    library = ggml.Ggml()
    assert {kind: library.type_sizes(kind) for kind in BLOCKS} == BLOCKS


def test_prompts_may_be_put_into_the_chat_template(m3: Path, tmp_path: Path) -> None:
    prompts = [Prompt("hello")]
    chat, plain = (
        capture(m3, tmp_path / str(chat), chat=chat, prompts=prompts, token_ids=True)
        for chat in (True, False)
    )
    with closing(Engine(m3)) as engine:
        expected = engine.tokenize("[user] hello\n[assistant]", chat=True)
        assert split(plain)[0] == [engine.tokenize("hello")]
    assert split(chat)[0] == [expected] and expected != split(plain)[0][0]


def test_another_layout_is_refused(
    m3: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of 2023-11 and before, when `ggml_tensor` had a backend field more."""
    fields = ggml.Tensor._fields_
    older = type(
        "Tensor",
        (ggml.ctypes.Structure,),
        {"_fields_": [fields[0], ("backend", ggml.ctypes.c_int64), *fields[1:]]},
    )
    monkeypatch.setattr(ggml, "Tensor", older)
    with pytest.raises(InputError, match="laid out in a way that moeprof does not know"):
        capture(m3, tmp_path / "t.moetrace")
    assert not (tmp_path / "t.moetrace").exists()


def test_what_llama_cpp_will_not_load_is_said_in_its_words(m3: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "m.gguf"
    damaged.write_bytes(
        m3.read_bytes().replace(b"blk.3.exp_probs_b.bias", b"blk.3.exp_prXbs_b.bias")
    )
    with pytest.raises(
        InputError, match=r"llama.cpp cannot load it: .*blk\.3\.exp_probs_b"
    ) as caught:
        capture(damaged, tmp_path / "t.moetrace")
    assert "\n" not in str(caught.value) and not (tmp_path / "t.moetrace").exists()


def test_prompts_that_do_not_fit_are_named(m3: Path, tmp_path: Path) -> None:
    long = [Prompt("word " * 5000, None, "p.txt:1")]
    with pytest.raises(InputError, match=r"p\.txt:1: \d+ tokens and 12 new ones exceed 4,096"):
        capture(m3, tmp_path / "t.moetrace", prompts=long)
    with pytest.raises(InputError, match="raise context"):
        capture(m3, tmp_path / "t.moetrace", context=16)


def test_the_command(m3: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"text": "one", "label": "a"}\n{"text": "two two", "label": "b"}\n')
    words = [str(m3), "--prompts", str(prompts), "-o", str(tmp_path / "t"), "--max-new-tokens", "4"]
    command = [sys.executable, "-m", "moeprof", "capture", "llamacpp", *words]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    result = document["result"]
    assert document["schema"] == "moeprof.capture.llamacpp/1" and result["dropped"] == 0
    assert result["tokens"] == result["prefill_tokens"] + result["decode_tokens"]
    assert moeprof.open_trace(tmp_path / "t").labels == ("a", "b")
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 2 and "--force" in again.stderr
    forced = subprocess.run([*command, "--force"], capture_output=True, text=True, timeout=120)
    assert "Next:  moeprof info" in forced.stdout
    assert forced.stderr.count("\n") == 2  # ours alone: llama.cpp is quiet
