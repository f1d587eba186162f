"""ggml's tensors as numpy sees them, against index arithmetic element by element."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import F32, I32, Tensor, read_rows
from moeprof.capture.llamacpp.tap import margins_of


def view(shape: list[int], strides: list[int], kind: int = I32) -> Tensor:
    tensor = Tensor(type=kind, name=b"ffn_moe_topk-3")
    tensor.ne[:], tensor.nb[:] = shape, strides
    return tensor


def element(data: NDArray[np.uint8], tensor: Tensor, column: int, row: int) -> int:
    at = column * tensor.nb[0] + row * tensor.nb[1]
    return int.from_bytes(bytes(data[at : at + 4]), "little", signed=True)


@given(rows=st.integers(1, 9), k=st.integers(1, 6), spare=st.integers(0, 9))
def test_rows_of_a_view_are_read_by_its_strides(rows: int, k: int, spare: int) -> None:
    width = k + spare
    memory = np.random.default_rng(rows * 100 + width).permutation(rows * width).astype(np.int32)
    tensor = view([k, rows, 1, 1], [4, 4 * width, 4 * width * rows, 4 * width * rows])
    span = (rows - 1) * 4 * width + 4 * k  # what ggml_nbytes says of such a view
    data = memory.view(np.uint8)[:span]
    found = read_rows(data, tensor, k)
    assert found.tolist() == [[element(data, tensor, c, r) for c in range(k)] for r in range(rows)]


def test_a_contiguous_reading_would_give_others() -> None:
    """The trap: from the second token on, the experts that were not chosen come first."""
    order = np.argsort(np.random.default_rng(0).random((5, 16)), axis=1).astype(np.int32)
    tensor = view([4, 5, 1, 1], [4, 64, 320, 320])
    found = read_rows(order.view(np.uint8).ravel()[: 4 * 64 + 16], tensor, 4)
    assert (found == order[:, :4]).all()
    contiguous = order.ravel()[:20].reshape(5, 4)
    assert (contiguous[0] == found[0]).all() and (contiguous[1:] != found[1:]).any(axis=1).all()


def test_gate_weights_have_their_tokens_in_the_third_dimension() -> None:
    memory = np.arange(12, dtype=np.float32)
    tensor = view([1, 3, 4, 1], [4, 4, 12, 48], F32)
    assert (read_rows(memory.view(np.uint8), tensor, 3) == memory.reshape(4, 3)).all()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (view([4, 2, 1, 1], [4, 64, 128, 128], kind=1), "neither F32 nor I32"),
        (view([16, 2, 1, 1], [4, 64, 128, 128]), "no rows of 4"),  # a warm-up: every expert
        (view([4, 9, 1, 1], [4, 64, 576, 576]), "out of the memory"),
    ],
)
def test_what_does_not_fit_is_refused(tensor: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_rows(np.zeros(256, np.uint8), tensor, 4)


def test_no_rows_are_no_rows() -> None:
    assert read_rows(np.zeros(0, np.uint8), view([4, 0, 1, 1], [4, 64, 0, 0]), 4).shape == (0, 4)


@given(st.integers(2, 12), st.data())
def test_a_margin_is_that_of_sorting(experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, experts))
    scores = np.random.default_rng(experts * 31 + k).random((6, experts), np.float32)
    found = margins_of(scores, k)[:, 0]
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
