"""The reader of config.json: many spellings of one fact, and one clear line for each fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import ModelError
from moeprof.model import MoEModel, preset_names
from moeprof.model.presets import read_preset


def config(**changes: Any) -> dict[str, Any]:
    """6 layers of 8 experts, top-2; a change to None takes the key out."""
    base = {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "max_position_embeddings": 1024,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4}, (2, 3, 4, 5)),
        ({"moe_layer_freq": [0, 0, 0, 1, 1, 1]}, (3, 4, 5)),
        ({"moe_layer_freq": [False, True] * 3}, (1, 3, 5)),
        ({"moe_layer_freq": 2, "first_k_dense_replace": 1}, (2, 4)),
        ({"first_k_dense_replace": 3}, (3, 4, 5)),
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 5]}, (1, 2, 3, 4)),
        ({"interleave_moe_layer_step": 3}, (2, 5)),
        ({"moe_layers": [1, 3], "interleave_moe_layer_step": 2}, (1, 3)),
        ({"moe_layers_enum": "2,4,5,6"}, (2, 4, 5)),
        ({"num_dense_layers": 4}, (4, 5)),
        (
            {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 1},
            (1, 2, 3),
        ),
        ({"moe_layer_start_index": 4, "moe_layer_end_index": -1}, (4, 5)),
        ({"expert_layer_period": 3, "expert_layer_offset": 1}, (1, 4)),
        ({"mlp_layer_types": ["hash_moe", "moe", "dense"] * 2}, (0, 1, 3, 4)),
        ({"hybrid_override_pattern": "MEM*E-"}, (1, 4)),
        ({"layers_block_type": ["moe", "mlp"] * 3, "num_hidden_layers": None}, (0, 2, 4)),
        ({"num_experts": 0, "num_experts_per_tok": None}, ()),
        ({"is_moe": False}, ()),
    ],
)
def test_layers_that_route(changes: dict[str, Any], layers: tuple[int, ...]) -> None:
    model = MoEModel.from_config(config(**changes))
    assert model.moe_layers == layers
    dense = 3 * 64 * 96 * (6 - len(layers))
    assert model.parameters["dense"] == dense


def test_one_value_may_be_written_for_every_layer() -> None:
    listed = config(num_experts_per_tok=[2] * 6, moe_intermediate_size=[32] * 6)
    assert MoEModel.from_config(listed) == MoEModel.from_config(config())


@pytest.mark.parametrize("outer", ["text_config", "language_config", "thinker_config"])
def test_the_language_model_of_several_parts_is_read(outer: str) -> None:
    nested = {"model_type": "qwen3_omni_moe", outer: config(), "vision_config": {"depth": 2}}
    model = MoEModel.from_config(nested, count_tensors=False)
    assert (model.model_type, model.layers, model.experts) == ("qwen3_omni_moe", 6, 8)


@pytest.mark.parametrize("key", ["num_local_experts", "n_routed_experts", "moe_num_experts"])
def test_every_name_for_the_number_of_experts(key: str) -> None:
    assert MoEModel.from_config(config(num_experts=None, **{key: 8})) == MoEModel.from_config(
        config()
    )


def test_the_published_and_the_saved_form_of_m3_agree() -> None:
    """transformers saves M3 under other names than the published config.json uses."""
    published = read_preset("minimax-m3")
    text = dict(published["text_config"])
    sparse = text.pop("sparse_attention_config")
    freq = text.pop("moe_layer_freq")
    for key in ("n_shared_experts", "use_qk_norm", "qk_norm_type", "use_routing_bias"):
        text.pop(key)
    text |= {
        "model_type": "minimax_m3_vl_text",
        "mlp_layer_types": ["sparse" if flag else "dense" for flag in freq],
        "layer_types": ["minimax_m3_sparse" if flag else "full_attention" for flag in freq],
        "index_n_heads": sparse["sparse_num_index_heads"],
        "index_head_dim": sparse["sparse_index_dim"],
        "index_block_size": sparse["sparse_block_size"],
        "index_topk_blocks": sparse["sparse_topk_blocks"],
    }
    vision = dict(published["vision_config"])
    vision |= vision.pop("img_token_compression_config")
    saved = {**published, "text_config": text, "vision_config": vision}
    assert MoEModel.from_config(saved, name="m3") == MoEModel.from_config(published, name="m3")
    only_text = MoEModel.from_config(text)
    assert only_text.parameters["vision"] == 0
    assert only_text.parameters["total"] == 427_040_140_160 - 865_567_232


def test_a_tied_head_is_no_parameter() -> None:
    model = MoEModel.from_config(config(tie_word_embeddings=True))
    assert model.tied_embeddings
    assert model.parameters["head"] == 0
    assert model.parameters["embedding"] == 100 * 64


def test_several_shared_experts_are_counted_each() -> None:
    model = MoEModel.from_config(config(model_type="glm4_moe", n_shared_experts=2))
    assert model.parameters["shared"] == 6 * 2 * 3 * 64 * 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -1}, "hidden_size: .*greater than 0, not -1"),
        ({"hidden_size": "64"}, "hidden_size: .*integer, not '64'"),
        ({"hidden_size": float("nan")}, "hidden_size: .*not nan"),
        ({"hidden_size": 64.5}, "hidden_size: .*not 64.5"),
        ({"hidden_size": True}, "hidden_size: .*not True"),
        ({"hidden_size": 2**50}, "hidden_size: "),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: "),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: 9 experts of 8"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok: 0 of 8"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({"num_experts_per_tok": [2, 1]}, "or differs by layer"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: 'qwen3_moe' is no decoder alone"),
        ({"moe_layers_enum": "1,x"}, "moe_layers_enum: "),
        ({"num_local_experts": 4}, "num_local_experts is 4 but num_experts is 8"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is missing"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": "qwen3_mo"}, "model_type: .*'qwen3_mo' .*known: qwen3_moe"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: multi-head latent attention"),
        ({"vision_config": {"depth": 3}}, "vision_config: "),
        ({"linear_num_value_heads": 4}, "linear_num_value_heads: linear attention"),
        ({"use_bias": True}, "use_bias: biases on every"),
        ({"model_type": "deepseek_v3"}, "qk_rope_head_dim is missing"),
        ({"model_type": "qwen3_5_moe"}, "vision_config.hidden_size.* is missing"),
        ({"model_type": "qwen3_next", "linear_num_value_heads": 4}, "full_attention_interval is m"),
        ({"moe_layer_freq": [0, 1]}, "moe_layer_freq names 2 layers, num_hidden_layers 6"),
        ({"moe_layer_freq": [2] * 6}, "moe_layer_freq: '2'"),
        ({"mlp_layer_types": ["sparse"] * 5 + ["odd"]}, "mlp_layer_types: 'odd'"),
        ({"layer_types": ["linear_attention"] * 6}, "layer_types: 'linear_attention'"),
        ({"index_n_heads": 4}, "sparse_attention_freq or layer_types is missing"),
        ({"layer_types": ["x_sparse"] * 6}, "index_head_dim.* is missing"),
        ({"qk_norm_type": "odd"}, "qk_norm_type: 'odd'"),
        ({"num_attention_heads": 6, "head_dim": None}, "head_dim is missing"),
        ({"moe_intermediate_size": None, "intermediate_size": None}, "intermediate_size is miss"),
        ({"intermediate_size": None, "mlp_only_layers": [0]}, "intermediate_size is missing"),
    ],
)
def test_a_fault_is_one_line_with_file_and_key(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(**changes)), encoding="utf-8")
    with pytest.raises(ModelError, match=message) as raised:
        MoEModel.from_config(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_configuration_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        MoEModel.from_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: No such file"):
        MoEModel.from_config(tmp_path / "config.json")


def test_a_model_that_cannot_be_counted_can_still_be_recorded() -> None:
    """DeepSeek-V3's routing is plain to read, though its attention is not counted."""
    content = config(
        model_type="deepseek_v3", kv_lora_rank=512, first_k_dense_replace=3, n_routed_experts=8
    )
    model = MoEModel.from_config(content, count_tensors=False)
    assert (model.moe_layers, model.experts, model.top_k) == ((3, 4, 5), 8, 2)
    assert (model.tensors, model.parameters, model.attention) == ((), {}, None)
    assert MoEModel.from_dict(model.to_dict()) == model


@given(
    st.dictionaries(
        st.sampled_from(sorted({*config(), "mlp_only_layers", "moe_layer_freq", "layer_types"})),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()),
        max_size=3,
    )
)
def test_any_content_is_read_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    try:
        model = MoEModel.from_config({**config(), **changes})
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert sum(t.parameters for t in model.tensors) == model.parameters["total"]


@given(st.data())
def test_any_damage_to_a_preset_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    content = read_preset(data.draw(st.sampled_from(preset_names())))
    text = content.get("text_config", content)
    key = data.draw(st.sampled_from(sorted(text)))
    value = data.draw(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none()))
    damaged = {**text, key: value}
    try:
        model = MoEModel.from_config(
            {**content, "text_config": damaged} if "text_config" in content else damaged
        )
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert sum(t.parameters for t in model.tensors) == model.parameters["total"]


@given(
    layers=st.integers(1, 12),
    experts=st.integers(1, 64),
    width=st.integers(1, 256),
    dense=st.integers(0, 12),
)
def test_counts_follow_from_the_shape(layers: int, experts: int, width: int, dense: int) -> None:
    model = MoEModel.from_config(
        config(
            num_hidden_layers=layers,
            num_experts=experts,
            num_experts_per_tok=1,
            moe_intermediate_size=width,
            mlp_only_layers=list(range(min(dense, layers))),
        )
    )
    moe = max(0, layers - dense)
    assert len(model.moe_layers) == moe
    assert model.parameters["routed"] == moe * experts * 3 * 64 * width
    if moe:
        assert model.expert_parameters == 3 * 64 * width
        assert model.bytes_per_expert("bf16") == 2 * model.expert_parameters
