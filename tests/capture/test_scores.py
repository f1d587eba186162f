"""Margins and the next layer's view, against what the model's own modules compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.errors import InputError
from moeprof.trace import open_trace, validate_trace

SCORES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "m3": lambda torch, gate, x: gate(x)[0].float().sigmoid() + gate.e_score_correction_bias,
    "mixtral": lambda torch, gate, x: gate(x)[0].float().softmax(-1),
    "qwen3": lambda torch, gate, x: gate(x)[0].float().softmax(-1),
}


def routers(model: Any) -> dict[int, Any]:
    """The router of every MoE layer."""
    gates = {n: getattr(layer.mlp, "gate", None) for n, layer in enumerate(model.model.layers)}
    return {n: gate for n, gate in gates.items() if gate is not None}


def watched(model: Any, ids: Any) -> dict[int, Any]:
    """The hidden state that every router is given."""
    given: dict[int, Any] = {}
    handles = [
        gate.register_forward_pre_hook(lambda m, args, n=n: given.update({n: args[0].clone()}))
        for n, gate in routers(model).items()
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    return given


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", SCORES)
def test_margins_and_the_next_layers_choice(
    family: str,
    compiled: bool,
    build: Callable[..., Any],
    padded: tuple[Any, Any],
    tmp_path: Path,
    torch: Any,
) -> None:
    # the first layer of m3 is dense
    model = build(family, layers=3 if family == "m3" else 2) if compiled else build(family)
    ids = padded[0]
    torch.compiler.reset()
    with torch.no_grad():
        with record(
            model, tmp_path / "t.moetrace", margins=True, next_layer=True, weights=True
        ) as recording:
            (torch.compile(model, backend="aot_eager") if compiled else model)(ids)
        hidden = watched(model, ids)
    torch.compiler.reset()
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.error, recording.dropped) == (None, 0)
    assert not validate_trace(trace.path).problems
    for layer, gate in routers(model).items():
        with torch.no_grad():
            scores = SCORES[family](torch, gate, hidden[layer])
            ranked = scores.reshape(-1, scores.shape[-1]).sort(descending=True).values
        k = trace.top_k
        expected = (ranked[:, k - 1] - ranked[:, k]).numpy()
        assert np.allclose(trace.margins(layer), expected, rtol=2e-3, atol=1e-4)
    layers = list(routers(model))
    for layer, following in itertools.pairwise(layers):
        with torch.no_grad():
            _, weights, chosen = routers(model)[following].forward(hidden[layer])
        assert np.array_equal(trace.next_experts(layer), chosen.reshape(-1, trace.top_k))
        assert np.allclose(trace.next_weights(layer), weights.reshape(-1, trace.top_k), atol=1e-3)


def test_a_choice_that_scores_do_not_explain_has_no_margin(torch: Any) -> None:
    from moeprof.capture.transformers.routers.reading import Routed
    from moeprof.capture.transformers.routers.scores import selection_margin

    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    ids = torch.tensor([[0, 1], [2, 3]])
    weights = logits.softmax(-1).gather(1, ids)
    explained, not_explained = selection_margin(Routed(ids, weights, logits), None).tolist()
    assert explained == pytest.approx(float(logits.softmax(-1)[0, 1] - logits.softmax(-1)[0, 2]))
    assert np.isnan(not_explained)


def test_the_model_computes_the_same(
    build: Callable[[str], Any], padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    model = build("m3")
    plain = model(padded[0]).logits
    with record(model, tmp_path / "t.moetrace", margins=True, next_layer=True):
        watched = model(padded[0]).logits
    assert torch.equal(plain, watched)


def test_routers_that_take_more_than_the_hidden_state_are_refused(
    tmp_path: Path, torch: Any
) -> None:
    from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    model = MiniMaxM2ForCausalLM(MiniMaxM2Config(**sizes, **heads, **experts)).eval()
    with (
        pytest.raises(InputError, match=r"e_score_correction_bias.*record without next_layer"),
        record(model, tmp_path / "t.moetrace", next_layer=True),
    ):
        pass
    with torch.no_grad(), record(model, tmp_path / "m.moetrace", margins=True) as recording:
        model(torch.arange(8)[None])
    assert recording.error is None
    assert np.isfinite(open_trace(tmp_path / "m.moetrace").margins(0)).all()
