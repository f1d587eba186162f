"""Exact counts of known models, and what may be asked of a model."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from moeprof.errors import InputError, ModelError
from moeprof.model import TENSOR_CLASSES, MoEModel, load_model, preset_names
from moeprof.model.presets import read_preset

# MiniMax-M3's checkpoint: 23,416 tensors, 427,040,140,160 values
# (https://huggingface.co/MiniMaxAI/MiniMax-M3).
M3 = {
    "total": 427_040_140_160,
    "active": 23_503_344_000,
    "routed": 413_122_166_784,
    "shared": 3_227_516_928,
    "attention": 6_417_300_480,
    "dense": 679_477_248,
    "indexer": 224_147_712,
    "embedding": 1_229_193_216,
    "head": 1_229_193_216,
    "router": 44_833_920,
    "vision": 865_567_232,
    "norms": 743_424,
}


@pytest.fixture(scope="module")
def m3() -> MoEModel:
    return MoEModel.preset("minimax-m3")


def test_m3_has_the_published_parameters_in_every_class(m3: MoEModel) -> None:
    assert dict(m3.parameters) == M3


def test_m3_architecture(m3: MoEModel) -> None:
    assert m3.layers == 60
    assert m3.moe_layers == tuple(range(3, 60))
    assert (m3.experts, m3.top_k, m3.shared_experts) == (128, 4, 1)
    assert m3.expert_parameters == 56_623_104
    assert m3.token_cycle == 228
    assert m3.indexer is not None
    assert (m3.indexer.layers, m3.indexer.heads, m3.indexer.head_dim) == (57, 4, 128)
    assert (m3.indexer.block_size, m3.indexer.top_blocks) == (128, 16)


def test_a_dense_model_has_no_experts() -> None:
    model = MoEModel.preset("llama-3.1-70b")
    assert (model.moe_layers, model.experts, model.top_k, model.token_cycle) == ((), 0, 0, 0)
    assert model.expert_parameters == model.bytes_per_expert("bf16") == 0


def test_kv_bytes_are_split_at_most_kv_heads_ways_and_the_index_key_never(m3: MoEModel) -> None:
    per_rank = [m3.kv_bytes_per_token_per_rank(tp) for tp in (1, 2, 4, 8)]
    assert per_rank == [61_440 * 2 // split + 7_296 * 2 for split in (1, 2, 4, 4)]
    # 262,144 tokens at BF16 and TP4: 11.06 GiB, https://github.com/0xSero/minimax-m3-sm120
    assert per_rank[2] * 262_144 / 2**30 == pytest.approx(11.06, abs=0.005)
    assert m3.kv_bytes_per_token_per_rank(2, "fp8", "fp8") == 38_016
    assert m3.kv_bytes_per_token_per_rank(2, "fp8_e4m3", "bf16") == 30_720 + 14_592


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_json_and_pickle(name: str) -> None:
    model = MoEModel.preset(name)
    plain = json.loads(json.dumps(model.to_dict()))
    assert MoEModel.from_dict(plain) == model
    assert MoEModel.from_dict(plain).parameters == model.parameters
    assert pickle.loads(pickle.dumps(model)) == model
    assert len({model, MoEModel.preset(name)}) == 1
    assert sum(model.parameters[c] for c in TENSOR_CLASSES) == model.parameters["total"]


def test_a_stored_model_of_a_later_version_opens(m3: MoEModel) -> None:
    plain = m3.to_dict()
    later = {**plain, "colour": "blue", "attention": {**plain["attention"], "kind": "mla"}}
    assert MoEModel.from_dict(later) == m3
    group = {"tensor_class": "mtp", "name": "x", "shape": [2], "count": 1}
    uncounted = MoEModel.from_dict({**plain, "tensors": [*plain["tensors"], group]})
    assert (uncounted.moe_layers, uncounted.parameters) == (m3.moe_layers, {})


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": None},
        {"moe_layers": [3, 3]},
        {"moe_layers": [60]},
        {"moe_layers": []},
        {"top_k": 200},
        {"attention": {"heads": 3}},
        {"tensors": [{"name": "x", "shape": [1], "count": 1}]},
    ],
)
def test_a_damaged_stored_model_is_refused(m3: MoEModel, damage: dict) -> None:
    with pytest.raises(ModelError):
        MoEModel.from_dict({**m3.to_dict(), **damage})


def test_a_model_whose_tensors_were_not_counted_says_so(m3: MoEModel) -> None:
    bare = replace(m3, tensors=(), attention=None)
    assert bare.parameters == {}
    for ask in (
        lambda: bare.expert_parameters,
        lambda: bare.bytes_per_expert("bf16"),
        bare.kv_bytes_per_token_per_rank,
    ):
        with pytest.raises(ModelError, match="minimax-m3"):
            ask()


def test_load_model_takes_a_preset_a_file_and_a_folder(tmp_path: Path, m3: MoEModel) -> None:
    folder = tmp_path / "mixtral"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(read_preset("mixtral-8x7b")), encoding="utf-8")
    from_file = load_model(folder / "config.json")
    assert load_model(str(folder)) == from_file
    assert from_file.name == "mixtral"
    assert load_model("minimax-m3") == load_model(m3) == m3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minimax-m", "did you mean minimax-m3"),
        ("no such thing", "presets: .*llama-3.1-70b"),
        (".", "holds no config.json"),
        ("m" * 5000, "too long"),
    ],
)
def test_load_model_says_what_exists(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(name)


@pytest.mark.parametrize("ask", [{"tp": 0}, {"kv_dtype": "fp7"}])
def test_kv_bytes_refuse_what_does_not_exist(m3: MoEModel, ask: dict) -> None:
    with pytest.raises(InputError):
        m3.kv_bytes_per_token_per_rank(**ask)
