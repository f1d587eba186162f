"""Small models and traces that the tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, Trace, TraceWriter, synthesize_rows

# Shared machines make timings unreliable, and a failure in CI must be one that can be repeated.
settings.register_profile("moeprof", deadline=None, derandomize=True)
settings.load_profile("moeprof")

# In the background of a shell these are ignored, and what the tests start would inherit that.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def small_config(layers: int = 4, experts: int = 16, top_k: int = 3) -> dict[str, object]:
    """A Qwen3-MoE configuration with a dense first layer, so that layer is not ordinal."""
    return {
        "model_type": "qwen3_moe",
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 64,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    }


@pytest.fixture(scope="session")
def model() -> MoEModel:
    """3 MoE layers (1 to 3) of 16 experts, top-3."""
    return MoEModel.from_config(small_config())


@pytest.fixture
def trace(model: MoEModel) -> Trace:
    """600 synthetic tokens of 6 requests and two labels."""
    return Trace.in_memory(model, *synthesize_rows(model, 600, requests=6))


def save(path: Path, model: MoEModel, rows: TokenRows, requests: list[Request]) -> Path:
    """Write rows as a trace folder."""
    with TraceWriter(path, model, clock_base=0.0, token_ids=rows.token_id is not None) as writer:
        writer.write(rows)
        for request in requests:
            writer.put_request(request)
    return path


@pytest.fixture
def saved(tmp_path: Path, model: MoEModel) -> Callable[..., Path]:
    """A function that writes synthetic rows and returns the folder."""

    def write(tokens: int = 600, **options: object) -> Path:
        rows, requests = synthesize_rows(model, tokens, **options)  # type: ignore[arg-type]
        return save(tmp_path / "run.moetrace", model, rows, requests)

    return write
