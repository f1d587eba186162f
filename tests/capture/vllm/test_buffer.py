"""The buffer that routers write in the graph: traced by Dynamo, or captured on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from moeprof.capture.layout import UNWRITTEN
from moeprof.capture.vllm.buffer import StepBuffer
from moeprof.capture.vllm.routers import Tap

LAYERS, TOP_K = 3, 2


@pytest.fixture
def torch_reset() -> Iterator[None]:
    """Nothing compiled is left."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def cuda() -> torch.device:
    """The first GPU; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", 0)


def make_taps(device: str) -> tuple[StepBuffer, list[Tap]]:
    buffer = StepBuffer(torch.device(device), 100, LAYERS, TOP_K)
    return buffer, [Tap(buffer, slot, None) for slot in range(LAYERS)]


def check(buffer: StepBuffer, ids: torch.Tensor, positions: torch.Tensor) -> None:
    """What is taken is `ids` [n, layers, k] at `positions`."""
    routing = buffer.take(len(positions), positions, positions.int() * 3)
    np.testing.assert_array_equal(routing["experts"], ids.cpu().numpy())
    np.testing.assert_array_equal(routing["position"][:, 0], positions.cpu().numpy())
    np.testing.assert_array_equal(routing.token_ids, positions.cpu().numpy() * 3)


def test_a_traced_graph_writes_every_step(torch_reset: None) -> None:
    """As vLLM compiles: in one graph, for any number of tokens."""
    buffer, taps = make_taps("cpu")

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def forward(ids: torch.Tensor) -> torch.Tensor:
        for layer, tap in enumerate(taps):
            tap(ids[:, layer])
        return ids + 1

    for rows in (2, 7, 30, 3):
        ids = torch.randint(0, 300, (rows, LAYERS, TOP_K), dtype=torch.int32)
        buffer.clear(rows)
        forward(ids)
        check(buffer, ids, torch.arange(rows) + 5)


def test_what_no_router_wrote_says_so() -> None:
    buffer, taps = make_taps("cpu")
    ids = torch.randint(0, 9, (6, TOP_K))
    buffer.clear(6)
    taps[0](ids)
    taps[2](ids[:4])
    experts = buffer.take(6, torch.arange(6), None)["experts"]
    np.testing.assert_array_equal(experts[:, 0], ids.numpy())
    assert (experts[:, 1] == UNWRITTEN).all()
    assert (experts[4:, 2] == UNWRITTEN).all()


@pytest.mark.gpu
def test_a_cuda_graph_writes_what_is_routed_when_it_is_replayed(cuda: torch.device) -> None:
    buffer, taps = make_taps("cuda")
    source = torch.zeros(8, LAYERS, TOP_K, dtype=torch.int32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer, tap in enumerate(taps):
            tap(source[:, layer])
    for rows in (8, 5, 1):  # a graph of eight rows, some of them padding
        ids = torch.randint(0, 300, (8, LAYERS, TOP_K), dtype=torch.int32, device="cuda")
        source.copy_(ids)
        buffer.clear(rows)
        graph.replay()
        check(buffer, ids[:rows], torch.arange(rows, device="cuda"))
