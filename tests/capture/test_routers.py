"""Finding routers by structure and believing them by what they return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.capture.transformers.routers.finding import find_router_sites
from moeprof.capture.transformers.routers.reading import routing_in_arguments, routing_in_output
from moeprof.errors import InputError
from moeprof.trace import open_trace

from .conftest import Oracle


@pytest.mark.parametrize(
    ("family", "layers"),
    [("m3", [1, 2, 3]), ("m3_vl", [1, 2, 3]), ("qwen3", [0, 1, 3]), ("mixtral", [0, 1, 2, 3])],
)
def test_the_layers_are_native_and_routers_come_first(
    family: str, layers: list[int], build: Callable[[str], Any]
) -> None:
    model = build(family)
    experts = 16 if family.startswith("m3") else 8
    sites = find_router_sites(model, layers, experts)
    assert list(sites) == layers
    for layer, found in sites.items():
        assert all(f".{layer}." in site.path and "vision" not in site.path for site in found)
        assert found[-1].asks_experts and not any(site.asks_experts for site in found[:-1])
        assert any(site.path.endswith(".gate") for site in found)


def test_a_model_without_routers_is_refused_with_what_was_looked_for(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"layers \[1, 2\].*gate.*router.*weight of 8 rows"):
        find_router_sites(model, [1, 2], 8)


def test_two_towers_of_moe_layers_are_refused(torch: Any, build: Callable[[str], Any]) -> None:
    both = torch.nn.ModuleDict({"thinker": build("mixtral"), "talker": build("qwen3")})
    with pytest.raises(InputError, match=r"several towers \(talker.model.layers, thinker"):
        find_router_sites(both, [0, 1, 3], 8)


def test_rows_of_an_embedding_are_no_router(torch: Any) -> None:
    layer = torch.nn.ModuleDict({"up": torch.nn.Embedding(8, 4), "proj": torch.nn.Linear(4, 8)})
    sites = find_router_sites(torch.nn.ModuleList([layer]), [0], 8)
    assert [site.path for site in sites[0]] == ["0.proj"]


def test_only_what_looks_like_routing_is_taken_for_it(torch: Any) -> None:
    ids, weights = torch.zeros(5, 2, dtype=torch.int64), torch.ones(5, 2)
    logits = torch.zeros(5, 8)
    assert routing_in_output((logits, weights, ids), 2) is not None
    assert routing_in_output((logits, weights, ids, logits), 2) is not None
    assert routing_in_output((ids, weights), 2) is not None
    assert routing_in_output((ids, weights, logits), 2) is not None
    three_d = (logits, weights.view(1, 5, 2), ids.view(1, 5, 2))
    assert routing_in_output(three_d, 2)[0].shape == (5, 2)  # type: ignore[index]
    for other in (
        logits,
        (weights, ids),
        (logits, logits, ids),
        (logits, weights, weights),
        (logits, ids, ids),
        (logits, weights, ids[:, :1]),
        (logits, weights, None),
        (weights, weights),
        (logits, logits[:, :7]),
        (logits[0], logits[0]),
        (ids, ids, weights, [5, 5], logits),
        (ids.view(-1), ids.view(-1), weights.view(-1), [5, 5], logits),
        (ids.view(-1), ids.view(-1), weights.view(-1), [5, 5], logits[:4]),
        (),
        None,
    ):
        assert routing_in_output(other, 2) is None
    assert routing_in_output((logits, weights, ids), 4) is None
    assert routing_in_arguments((logits, ids, weights), {}, 2) is not None
    assert routing_in_arguments((logits,), {"i": ids, "w": weights}, 2) is not None
    assert routing_in_arguments((logits,), {}, 2) is None


def test_logits_come_along_where_they_are_one_row_a_token(torch: Any) -> None:
    ids, weights = torch.zeros(6, 2, dtype=torch.int64), torch.ones(6, 2)
    for logits in (torch.rand(6, 8), torch.rand(2, 3, 8)):
        found = routing_in_output((logits, weights, ids), 2).logits  # type: ignore[union-attr]
        assert torch.equal(found, logits.view(6, 8))
    for other in (torch.rand(5, 8), torch.rand(6), ids, None):
        assert routing_in_output((other, weights, ids), 2).logits is None  # type: ignore[union-attr]


def test_scores_are_read_where_they_say_who_was_chosen(torch: Any) -> None:
    logits = torch.randn(7, 8)
    values, ids = logits.topk(2, dim=1)
    chosen = torch.full_like(logits, float("-inf")).scatter(1, ids, values)
    scores = chosen.sigmoid()
    scores[3] = logits[3].sigmoid()  # says nothing of who was chosen
    scores[4] = torch.where(scores[4] == scores[4].max(), scores[4], 0.0)  # one underflowed
    found = routing_in_output((scores, logits), 2)
    assert found is not None and found.logits is logits
    known = [0, 1, 2, 5, 6]
    assert torch.equal(found.ids[known], ids[known])
    assert torch.equal(found.weights[known], values[known].sigmoid())
    assert (found.ids[[3, 4]] == -1).all()


def test_assignments_sorted_by_expert_are_put_back(torch: Any) -> None:
    logits = torch.randn(7, 8)
    values, ids = logits.topk(3, dim=1)
    order = ids.flatten().argsort()
    sizes = ids.flatten().bincount(minlength=8).tolist()
    gates = values.flatten()[order]
    found = routing_in_output((order, order // 3, gates, sizes, logits), 3)
    assert found is not None
    assert torch.equal(found.ids, ids) and torch.equal(found.weights, values)


@pytest.mark.parametrize("convention", ["ids", "scores"])
def test_reading_compiles_into_one_graph(convention: str, torch: Any) -> None:
    def read(logits: Any) -> tuple[Any, Any]:
        values, ids = logits.topk(2, dim=1)
        chosen = torch.full_like(logits, float("-inf")).scatter(1, ids, values).sigmoid()
        output = (chosen, logits) if convention == "scores" else (logits, values.sigmoid(), ids)
        routed = routing_in_output(output, 2)
        assert routed is not None
        return routed.ids, routed.weights

    logits = torch.randn(7, 8)
    compiled = torch.compile(read, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(logits), read(logits), strict=True):
        assert torch.equal(got, expected)


def test_where_the_router_says_something_else_its_experts_are_asked(
    m3: Any, padded: tuple[Any, Any], tmp_path: Path
) -> None:
    # A router as of another family: its hook here makes it return what no one understands,
    # after the block below it has been given the ids.
    class Block(type(m3.model.layers[1].mlp)):  # type: ignore[misc]
        def forward(self, hidden: Any) -> Any:
            flat = hidden.view(-1, hidden.shape[-1])
            _, weights, ids = self.gate.forward(flat)  # not called as a module: no hooks
            return self.experts(flat, ids, weights).reshape(hidden.shape)

    blocks = [m3.model.layers[layer].mlp for layer in (1, 2, 3)]
    original = type(blocks[0])
    kept: list[Any] = []
    watch = blocks[0].experts.register_forward_pre_hook(lambda m, args: kept.append(args[1]))
    try:
        for block in blocks:
            block.__class__ = Block
        with record(m3, tmp_path / "t.moetrace") as recording:
            m3(padded[0])
            m3(padded[0])
    finally:
        watch.remove()
        for block in blocks:
            block.__class__ = original
    trace = open_trace(tmp_path / "t.moetrace")
    assert (recording.tokens, recording.dropped) == (42, 0)
    assert np.array_equal(trace.experts(1), np.concatenate([ids.numpy() for ids in kept]))


def test_ids_that_are_no_expert_are_null(
    m3: Any, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    def mask_one(module: Any, args: Any, output: Any) -> Any:
        ids = output[2].clone()
        ids[3, 0] = -1
        return output[0], output[1], ids

    hook = m3.model.layers[2].mlp.gate.register_forward_hook(mask_one)
    m3.model.layers[2].mlp.experts.forward = lambda hidden, *_: hidden
    try:
        with Oracle(m3) as oracle, record(m3, tmp_path / "t.moetrace"):
            m3(padded[0])
    finally:
        hook.remove()
        del m3.model.layers[2].mlp.experts.forward
    trace = open_trace(tmp_path / "t.moetrace")
    assert trace.recorded(2).tolist() == [row != 3 for row in range(21)]
    assert np.array_equal(trace.experts(2), np.delete(oracle.calls[2][0][1], 3, axis=0))
