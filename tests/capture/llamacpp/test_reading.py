"""ggml's tensors as numpy sees them, against index arithmetic element by element."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import F32, I32, Tensor
from moeprof.capture.llamacpp.reading import LogReader, as_rows, margins_of
from moeprof.capture.llamacpp.tap import wanted_results
from moeprof.model import MoEModel


def view(shape: list[int], strides: list[int], kind: int = I32) -> Tensor:
    tensor = Tensor(type=kind, name=b"ffn_moe_topk-3")
    tensor.ne[:], tensor.nb[:] = shape, strides
    return tensor


def element(data: NDArray[np.uint8], tensor: Tensor, column: int, row: int) -> int:
    at = column * tensor.nb[0] + row * tensor.nb[1]
    return int.from_bytes(bytes(data[at : at + 4]), "little", signed=True)


def gathered(data: NDArray[np.uint8], tensor: Tensor) -> NDArray[np.int32]:
    """The elements as the callback lays them side by side."""
    from moeprof.capture.llamacpp.kernels import gather, span_bytes

    ne, nb = (np.array(list(each), np.int64) for each in (tensor.ne, tensor.nb))
    assert span_bytes(ne, nb) == data.nbytes  # what ggml_nbytes says of such a view
    out = np.full(ne.prod(), -1, np.int32)
    gather(data.view(np.int32), ne, nb, out)
    return out


@given(rows=st.integers(1, 9), k=st.integers(1, 6), spare=st.integers(0, 9))
def test_rows_of_a_view_are_read_by_its_strides(rows: int, k: int, spare: int) -> None:
    width = k + spare
    memory = np.random.default_rng(rows * 100 + width).permutation(rows * width).astype(np.int32)
    tensor = view([k, rows, 1, 1], [4, 4 * width, 4 * width * rows, 4 * width * rows])
    data = memory.view(np.uint8)[: (rows - 1) * 4 * width + 4 * k]
    found = as_rows(gathered(data, tensor).view(np.uint8), tensor, k)
    assert found.tolist() == [[element(data, tensor, c, r) for c in range(k)] for r in range(rows)]


def test_a_contiguous_reading_would_give_others() -> None:
    """The trap: from the second token on, the experts that were not chosen come first."""
    order = np.argsort(np.random.default_rng(0).random((5, 16)), axis=1).astype(np.int32)
    tensor = view([4, 5, 1, 1], [4, 64, 320, 320])
    found = gathered(order.view(np.uint8).ravel()[: 4 * 64 + 16], tensor).reshape(5, 4)
    assert (found == order[:, :4]).all()
    contiguous = order.ravel()[:20].reshape(5, 4)
    assert (contiguous[0] == found[0]).all() and (contiguous[1:] != found[1:]).any(axis=1).all()


def test_gate_weights_have_their_tokens_in_the_third_dimension() -> None:
    memory = np.arange(12, dtype=np.float32)
    tensor = view([1, 3, 4, 1], [4, 4, 12, 48], F32)
    rows = as_rows(gathered(memory.view(np.uint8), tensor).view(np.uint8), tensor, 3)
    assert (rows == memory.reshape(4, 3)).all()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (view([4, 2, 1, 1], [4, 64, 128, 128], kind=1), "neither F32 nor I32"),
        (view([16, 2, 1, 1], [4, 64, 128, 128]), "no rows of 4"),  # a warm-up: every expert
    ],
)
def test_what_does_not_fit_is_refused(tensor: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_rows(np.zeros(32, np.uint8), tensor, 4)


MODEL = MoEModel("m", "minimax-m3", 8, 4, (1, 3), 16, 4)


def log(*results: tuple[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """A log of these results, each [rows, columns]."""
    parts = []
    for name, rows in results:
        tensor = view([rows.shape[1], rows.shape[0], 1, 1], [4, 64, 64, 64])
        tensor.name = name.encode()
        tensor.type = F32 if rows.dtype == np.float32 else I32
        raw = bytes(tensor) + np.ascontiguousarray(rows).tobytes()
        parts.append(raw + b"\0" * (-len(raw) % 8))
    return np.frombuffer(bytearray(b"".join(parts)), np.uint8)


def ids(rows: int, seed: int) -> NDArray[np.int32]:
    return (
        np.random.default_rng(seed)
        .permuted(np.tile(np.arange(16), (rows, 1)), axis=1)[:, :4]
        .astype(np.int32)
    )


def test_a_log_is_read_layer_by_layer_and_piece_by_piece() -> None:
    a, b, c, d = ids(3, 0), ids(2, 1), ids(3, 2), ids(2, 3)
    written = log(
        *[("ffn_moe_topk-1", a), ("ffn_moe_topk-3", c), ("ffn_moe_topk-2", a)],  # 2: not a layer
        *[("ffn_moe_topk-1", b), ("ffn_moe_topk-3", d)],
    )
    found = LogReader(MODEL, wanted_results(MODEL)).read(written, 5, np.ones(5, bool))
    assert found.forwards == (3, 2) and found.recorded.all()
    assert (found.experts[:, 0] == np.concatenate([a, b])).all()
    assert (found.experts[:, 1] == np.concatenate([c, d])).all()


def test_a_last_layer_that_was_pruned_is_not_recorded_elsewhere() -> None:
    outputs = np.array([False, True, False, True])
    written = log(("ffn_moe_topk-1", ids(4, 0)), ("ffn_moe_topk-3", ids(2, 1)))
    found = LogReader(MODEL, wanted_results(MODEL)).read(written, 4, outputs)
    assert found.recorded.tolist() == [[True, given] for given in outputs]
    assert (found.experts[outputs, 1] == ids(2, 1)).all()


def test_of_weights_and_scores_the_last_computed_is_meant() -> None:
    scores, biased = np.random.default_rng(0).random((2, 2, 16), np.float32)
    raw, norm = np.random.default_rng(1).random((2, 2, 4), np.float32)
    results = wanted_results(MODEL, weights=True, margins=True)
    layers = []
    for layer in MODEL.moe_layers:
        named = [("probs", scores), ("probs_biased", biased), ("topk", ids(2, 0))]
        named += [("weights", raw), ("weights_norm", norm)]
        layers += [(f"ffn_moe_{name}-{layer}", rows) for name, rows in named]
    found = LogReader(MODEL, results).read(log(*layers), 2, np.ones(2, bool))
    ordered = np.sort(biased, axis=1)
    assert found.weights is not None and found.margins is not None
    for slot in range(2):
        assert (found.weights[:, slot] == norm.astype(np.float16)).all()
        due = (ordered[:, -4] - ordered[:, -5]).astype(np.float16)
        assert (found.margins[:, slot] == due).all()


@pytest.mark.parametrize(
    "results",
    [
        [("ffn_moe_topk-1", ids(3, 0))],  # of 5 tokens, with 5 or 1 outputs
        [("ffn_moe_topk-1", ids(5, 0) + 16)],  # no experts
        [("ffn_moe_topk-1", ids(5, 0) - 16)],
        [("ffn_moe_topk-1", np.hstack([ids(5, 0)] * 2))],
        [
            *[("ffn_moe_topk-1", ids(2, 0)), ("ffn_moe_topk-1", ids(3, 0))],
            *[("ffn_moe_topk-3", ids(3, 0)), ("ffn_moe_topk-3", ids(2, 0))],
        ],
    ],
)
def test_what_contradicts_the_model_is_an_error(results: list[Any]) -> None:
    outputs = np.arange(5) == 4
    with pytest.raises(ValueError, match=r"layer|rows|experts"):
        LogReader(MODEL, wanted_results(MODEL)).read(log(*results), 5, outputs)


@given(st.integers(2, 12), st.data())
def test_a_margin_is_that_of_sorting(experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, experts))
    scores = np.random.default_rng(experts * 31 + k).random((6, experts), np.float32)
    found = margins_of(scores, k)
    if k == experts:
        assert np.isnan(found).all()
    else:
        ordered = np.sort(scores, axis=1)[:, ::-1]
        assert (found == ordered[:, k - 1] - ordered[:, k]).all()


def test_the_kernel_knows_a_name_from_what_was_derived_of_it() -> None:
    from moeprof.capture.llamacpp.kernels import is_wanted

    stems = np.zeros((2, 64), np.uint8)
    for row, stem in enumerate((b"ffn_moe_topk", b"ffn_moe_weights")):
        stems[row, : len(stem)] = np.frombuffer(stem, np.uint8)

    def wanted(name: bytes) -> bool:
        return is_wanted(np.frombuffer(name.ljust(64, b"\0"), np.uint8), stems)

    assert wanted(b"ffn_moe_topk-0") and wanted(b"ffn_moe_topk-59") and wanted(b"ffn_moe_weights-3")
    for other in (b"ffn_moe_topk", b"ffn_moe_topk-", b"ffn_moe_topk-3 (view)", b"ffn_moe_top-3"):
        assert not wanted(other)
    for other in (b"ffn_moe_topk_x-3", b"ffn_moe_weights_norm-3", b"", b"ffn_moe_topk-3a"):
        assert not wanted(other)
    assert not wanted((b"ffn_moe_topk-" + b"1" * 64)[:64])


def test_the_mirror_has_ggmls_size_up_to_the_name() -> None:
    assert ctypes.sizeof(Tensor) == Tensor.name.offset + 64
