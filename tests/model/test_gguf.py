"""From a GGUF's header to the model: every architecture's layers, bytes by type, and bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.errors import ModelError
from moeprof.model.formats import FORMATS
from moeprof.model.gguf import BLOCKS, GgufTensor
from moeprof.model.gguf_model import read_gguf_model
from tests.gguf_bytes import F32, Q4_K, gguf_bytes, moe


def write(path: Path, *parts: Any) -> Path:
    path.write_bytes(gguf_bytes(*parts))
    return path


def test_layers_and_routing_of_a_model(tmp_path: Path) -> None:
    keys = {"leading_dense_block_count": 1, "expert_shared_count": 1}
    found = read_gguf_model(write(tmp_path / "m.gguf", *moe(**keys)))
    model = found.model
    assert (model.name, model.model_type, model.layers) == ("tiny", "minimax-m3", 3)
    assert (model.moe_layers, model.experts, model.top_k) == ((1, 2), 8, 2)
    assert (model.shared_experts, model.hidden_size) == (1, 256)
    assert (model.expert_intermediate_size, model.vocab_size) == (512, 10)
    assert (model.max_positions, model.tied_embeddings) == (4096, True)


def test_bytes_of_an_expert_are_those_of_its_types(tmp_path: Path) -> None:
    """By hand: gate and up in Q4_K take 144 bytes a 256 weights, down in Q8_0 34 a 32."""
    found = read_gguf_model(write(tmp_path / "m.gguf", *moe()))
    expected = 2 * (256 * 512 // 256 * 144) + 512 * 256 // 32 * 34
    assert found.expert_bytes == {1: expected, 2: expected}


def test_layers_may_differ_in_type_and_an_unknown_one_is_left_out(tmp_path: Path) -> None:
    metadata, tensors = moe()
    tensors["blk.2.ffn_up_exps.weight"] = ((256, 512, 8), F32)
    found = read_gguf_model(write(tmp_path / "m.gguf", metadata, tensors))
    q8, q4 = 512 * 256 // 32 * 34, 256 * 512 // 256 * 144
    assert found.expert_bytes == {1: 2 * q4 + q8, 2: q4 + 256 * 512 * 4 + q8}
    tensors["blk.2.ffn_up_exps.weight"] = ((256, 512, 8), 99)
    found = read_gguf_model(write(tmp_path / "m.gguf", metadata, tensors))
    assert found.model.moe_layers == (1, 2) and list(found.expert_bytes) == [1]


@pytest.mark.parametrize("arch", ["qwen3moe", "llama", "deepseek2", "gpt-oss", "olmoe", "x"])
def test_the_tensors_say_which_layers_route(tmp_path: Path, arch: str) -> None:
    """Interleaved dense layers, biases, and `gate_up` in one: no key is asked."""
    metadata, tensors = moe(arch, layers=4, dense=0)
    tensors = {name: t for name, t in tensors.items() if not name.startswith("blk.2.ffn")}
    tensors["blk.2.ffn_down.weight"] = ((512, 256), F32)
    tensors["blk.0.ffn_down_exps.bias"] = ((256, 8), F32)
    for part in ("gate", "up"):
        del tensors[f"blk.3.ffn_{part}_exps.weight"]
    tensors["blk.3.ffn_gate_up_exps.weight"] = ((256, 1024, 8), Q4_K)
    found = read_gguf_model(write(tmp_path / "m.gguf", metadata, tensors))
    assert found.model.moe_layers == (0, 1, 3)
    sizes = found.expert_bytes
    assert sizes[0] == sizes[1] + 256 * 4 and sizes[3] == sizes[1]


def test_prediction_layers_are_no_layers(tmp_path: Path) -> None:
    found = read_gguf_model(write(tmp_path / "m.gguf", *moe("glm4moe", nextn_predict_layers=1)))
    assert (found.model.layers, found.model.moe_layers) == (2, (1,))


def test_a_number_once_a_layer_is_one_number(tmp_path: Path) -> None:
    metadata, tensors = moe()
    metadata["minimax-m3.expert_used_count"] = [0, 2, 2]
    found = read_gguf_model(write(tmp_path / "m.gguf", metadata, tensors))
    assert found.model.top_k == 2
    metadata["minimax-m3.expert_used_count"] = [0, 2, 4]
    with pytest.raises(ModelError, match="expert_used_count"):
        _ = read_gguf_model(write(tmp_path / "m.gguf", metadata, tensors)).model


def test_a_split_model_is_read_whole(tmp_path: Path) -> None:
    metadata, tensors = moe()
    names = list(tensors)
    first, second = names[:4], names[4:]
    one = write(tmp_path / "m-00001-of-00002.gguf", metadata, {n: tensors[n] for n in first})
    with pytest.raises(ModelError, match="00002-of-00002"):
        read_gguf_model(one)
    two = write(tmp_path / "m-00002-of-00002.gguf", {}, {n: tensors[n] for n in second})
    whole = read_gguf_model(write(tmp_path / "m.gguf", metadata, tensors))
    assert read_gguf_model(one).expert_bytes == whole.expert_bytes
    with pytest.raises(ModelError, match=r"is part 2 of 2, give the first: .*00001-of-00002"):
        read_gguf_model(two)


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    good = gguf_bytes(*moe())
    metadata, tensors = moe()
    dense = {name: t for name, t in tensors.items() if "_exps" not in name}
    old = dense | {"blk.1.ffn_gate.0.weight": ((256, 512), F32)}
    cases = {
        "is cut off": good[:-40],
        "is no GGUF file, or is cut off in its header": good[:200],
        "does not begin with the letters GGUF": b"<!doctype html><title>404</title>",
        "of version 1, only 2 and 3 are known": good[:4] + b"\1" + good[5:],
        "names no architecture": gguf_bytes({}, tensors),
        "has no routed experts": gguf_bytes(metadata, dense),
        "convert the model again": gguf_bytes(metadata, old),
        "expert_count is missing": gguf_bytes(
            {k: v for k, v in metadata.items() if not k.endswith("expert_count")}, tensors
        ),
    }
    for reason, content in cases.items():
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=reason) as caught:
            _ = read_gguf_model(tmp_path / "m.gguf").model
        assert str(tmp_path / "m.gguf") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_gguf_model(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match=r"is a folder, give a \.gguf file"):
        read_gguf_model(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 11, 24, 25, 40, 100, 300, 1000])
def test_a_cut_at_any_place_is_an_error(tmp_path: Path, size: int) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(*moe())[:size])
    with pytest.raises(ModelError):
        read_gguf_model(tmp_path / "m.gguf")


def test_blocks_agree_with_the_weight_formats() -> None:
    """Two tables of the same facts: what `models show` counts and what a file holds."""
    named = {"fp32": 0, "fp16": 1, "bf16": 30, "q4_0": 2, "q8_0": 8, "q2_k": 10, "q3_k": 11}
    named |= {"q4_k": 12, "q5_k": 13, "q6_k": 14, "iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18}
    named |= {"iq1_s": 19, "iq4_nl": 20, "iq3_s": 21, "iq2_s": 22, "iq4_xs": 23, "iq1_m": 29}
    named |= {"mxfp4": 39, "nvfp4": 40}
    for name, kind in named.items():
        tensor = GgufTensor("t", (512, 3, 2), kind, 0)
        assert tensor.nbytes == FORMATS[name].tensor_bytes((2, 3, 512)), name
    assert GgufTensor("t", (4,), 999, 0).nbytes is None and 999 not in BLOCKS
