"""Two small models as transformers has them and as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[3] / "moeprof" / "demo" / "tiny_m3"


@pytest.fixture(scope="session")
def m3_model() -> Any:
    """The trained MiniMax-M3 that ships with moeprof, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def m3(m3_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights for llama.cpp."""
    from tests.engines.llamacpp.gguf_files import write_m3

    return write_m3(tmp_path_factory.mktemp("m3") / "m3.gguf", m3_model)


@pytest.fixture(scope="session")
def qwen3_model() -> Any:
    """A random Qwen3-MoE whose routers are sure of what they choose."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        initializer_range=0.05,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.mlp.gate.weight.data *= 2
    return model


@pytest.fixture(scope="session")
def qwen3(qwen3_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights for llama.cpp."""
    from tests.engines.llamacpp.gguf_files import write_qwen3

    return write_qwen3(tmp_path_factory.mktemp("qwen3") / "qwen3.gguf", qwen3_model)
