"""The command, and what is refused: before any layer is read, in one line with a remedy."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import moeprof
from moeprof.capture import Prompt
from moeprof.cli.main import main
from moeprof.errors import InfeasibleError, InputError
from moeprof.trace import Phase, open_trace

from .models import make, save

TEXT = [Prompt("w5 w6 w7", completion="w8 w9 w10")]


@pytest.fixture(scope="module")
def folder(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("m3_vl"), tmp_path_factory.mktemp("checkpoint") / "m3")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the checkpoint, to be damaged."""
    for file in folder.iterdir():
        (tmp_path / "m3" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "m3" / file.name).write_bytes(file.read_bytes())
    yield tmp_path / "m3"


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.jsonl"
    first = '{"text": "w5 w6 w7", "completion": "w8 w9", "label": "a"}'
    prompts.write_text(first + '\n{"text": "w4"}\n')
    arguments = [str(folder), "--prompts", str(prompts), "-o", str(tmp_path / "t"), "--json"]
    code = main(["capture", "stream", *arguments, "--device", "cpu"])
    shown = capsys.readouterr()
    assert code == 0
    result = json.loads(shown.out)["result"]
    assert (result["tokens"], result["layers"], result["decode_tokens"]) == (5, 4, 1)
    assert result["bytes_read"] == sum(
        tensor.nbytes
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if name.startswith("language_model.model.")
    )
    assert "takes" in shown.err and "layer 4 of 4" in shown.err
    trace = open_trace(tmp_path / "t")
    assert trace.phase.tolist() == [Phase.PREFILL] * 3 + [Phase.DECODE, Phase.PREFILL]
    assert trace.labels == ("a",)


def test_token_ids_are_fed_as_they_are(folder: Path, tmp_path: Path) -> None:
    """No tokenizer is asked: another one might cut the text elsewhere."""
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    given = [Prompt(token_ids=(5, 6, 7), completion_token_ids=(8, 9, 10))]
    moeprof.stream(bare, given, tmp_path / "ids", device="cpu", token_ids=True)
    moeprof.stream(folder, TEXT, tmp_path / "text", device="cpu", token_ids=True)
    one, other = open_trace(tmp_path / "ids"), open_trace(tmp_path / "text")
    assert one.token_id.tolist() == other.token_id.tolist() == [5, 6, 7, 8, 9]
    assert all((one.experts(n) == other.experts(n)).all() for n in other.layers)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([5, 64], r"p\.jsonl:2: token id 64 is not in this model's vocabulary of 64"),
        ([5, 60], r"p\.jsonl:2: holds image tokens"),
        ([5] * 129, r"p\.jsonl:2: 129 tokens exceed the model's 128 positions: shorten it"),
    ],
)
def test_ids_that_cannot_be_fed_are_named_by_line(
    ids: list[int], says: str, folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(f'{{"token_ids": [5]}}\n{{"token_ids": {ids}}}\n')
    with pytest.raises(InputError, match=says):
        moeprof.stream(folder, prompts, tmp_path / "t", device="cpu")


def test_image_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image tokens"):
        moeprof.stream(folder, [Prompt("w5 w60 w7")], tmp_path / "t", device="cpu")


def test_a_budget_that_is_too_small_ends_with_4(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="raise --memory") as refused:
        moeprof.stream(folder, TEXT, tmp_path / "t", device="cpu", memory_bytes=1 << 20)
    assert refused.value.exit_code == 4
    assert not (tmp_path / "t").exists() and not (tmp_path / "t.stream").exists()


def test_a_disk_that_is_too_small_ends_with_4(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(InfeasibleError, match="free"):
        moeprof.stream(folder, TEXT, tmp_path / "t", device="cpu")


def test_a_lacking_tensor_is_named(copy: Path, tmp_path: Path) -> None:
    file, name = next(
        (file, name)
        for file in sorted(copy.glob("*.safetensors"))
        for name in load_file(file)
        if "layers.2" in name and "experts.3." in name
    )
    kept = {key: value for key, value in load_file(file).items() if key != name}
    save_file(kept, file)
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.experts\."):
        moeprof.stream(copy, TEXT, tmp_path / "t", device="cpu")


def test_a_cut_file_is_named(copy: Path, tmp_path: Path) -> None:
    file = sorted(copy.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=file.name):
        moeprof.stream(copy, TEXT, tmp_path / "t", device="cpu")


def test_a_run_that_ended_in_a_layer_goes_on_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeprof.capture.stream.layers import LayerStream

    moeprof.stream(folder, TEXT, tmp_path / "whole", device="cpu", weights=True)
    compute = LayerStream._compute

    def fail(self: LayerStream, index: int) -> None:
        compute(self, index)
        if index == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LayerStream, "_compute", fail)
        with pytest.raises(KeyboardInterrupt):
            moeprof.stream(folder, TEXT, tmp_path / "t", device="cpu", weights=True)
    with pytest.raises(InputError, match="another run"):
        moeprof.stream(folder, TEXT, tmp_path / "t", device="cpu")
    said: list[str] = []
    moeprof.stream(folder, TEXT, tmp_path / "t", device="cpu", weights=True, progress=said.append)
    assert "goes on at layer 2" in said
    one, other = open_trace(tmp_path / "t"), open_trace(tmp_path / "whole")
    for layer in one.layers:
        assert (one.experts(layer) == other.experts(layer)).all()
        assert (one.weights(layer) == other.weights(layer)).all()


def test_a_killed_run_goes_on_and_force_begins_anew(folder: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "t"
    prompts.write_text('{"text": "w5 w6 w7", "completion": "w8 w9"}\n{"text": "w4"}\n')
    killed = (
        "import os, signal, sys, moeprof\n"
        "def kill(line):\n"
        "    if line.startswith('layer 2 '): os.kill(os.getpid(), signal.SIGKILL)\n"
        "moeprof.stream(*sys.argv[1:], device='cpu', progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(folder), str(prompts), str(output)])
    assert done.returncode == -signal.SIGKILL and not output.exists()
    other = [Prompt("w9 w8")]
    with pytest.raises(InputError, match="another run"):
        moeprof.stream(folder, other, output, device="cpu")
    said: list[str] = []
    moeprof.stream(folder, prompts, output, device="cpu", progress=said.append)
    assert "goes on at layer 2" in said and open_trace(output).problems == ()
    (tmp_path / "t.stream").mkdir()
    (tmp_path / "t.stream" / "state.json").write_text('{"signature": "other", "done": 3}')
    result = moeprof.stream(folder, other, output, device="cpu", force=True)
    assert result.tokens == 2 and not (tmp_path / "t.stream").exists()


def test_layers_that_use_each_others_keys_are_refused(torch: Any) -> None:
    from transformers import Gemma4TextConfig

    from moeprof.capture.stream.opening import _check_config

    kinds = ["sliding_attention", "full_attention"] * 3
    shape = {"num_hidden_layers": 6, "layer_types": kinds}
    _check_config(Path("gemma"), Gemma4TextConfig(**shape))
    with pytest.raises(InputError, match="gemma: its layers use each other's keys"):
        _check_config(Path("gemma"), Gemma4TextConfig(**shape, num_kv_shared_layers=2))
