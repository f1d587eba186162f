"""Laws of the decoder that files and live captures share."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.trace.formats.reading import MALFORMED
from moeprof.trace.formats.routed import array_of, sglang_sequences, vllm_sequences

DTYPES = ["uint8", "int8", "uint16", "int16", ">i2", "int32", "uint32", "int64"]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@st.composite
def routings(draw: st.DrawFn) -> np.ndarray:
    shape = [draw(st.integers(0, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3))]
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape)
    array = values.astype(draw(st.sampled_from(DTYPES)))
    return np.asfortranarray(array) if draw(st.booleans()) else array


@given(routings())
def test_every_way_of_sending_an_array_gives_it_back(array: np.ndarray) -> None:
    row_major = np.ascontiguousarray(array)
    wrapped = {"shape": list(array.shape), "dtype": array.dtype.str}
    ways: list[Any] = [
        text(npy(array)),
        {"data": text(row_major.tobytes()), **wrapped},
        {"data": base64.b85encode(row_major.tobytes()).decode(), **wrapped},
    ]
    for sent in ways[: 3 if array.nbytes > 3 else 2]:  # three bytes are four letters in both
        assert (array_of(sent) == array).all() and array_of(sent).shape == array.shape


@given(routings(), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_npy_is_an_array_or_an_error_and_never_large(
    array: np.ndarray, place: int, value: int
) -> None:
    data = bytearray(npy(array))
    data[place % len(data)] = value
    for sent in (bytes(data), bytes(data[: place % len(data)])):
        try:
            found = array_of(text(sent))
        except (*MALFORMED, InputError):
            continue
        assert found.nbytes <= len(data) and found.ndim == 3


@given(routings(), st.integers(0, 9), st.integers(1, 6), st.integers(1, 3))
def test_choices_cover_each_token_once(
    array: np.ndarray, prompt: int, output: int, choices: int
) -> None:
    rows = prompt + output - 1
    layers, k = array.shape[1:]
    sent = text(npy(np.zeros((rows, layers, k), np.uint8)))
    response = {
        "usage": {"prompt_tokens": prompt, "completion_tokens": output * choices},
        "choices": [{"routed_experts": sent} for _ in range(choices)],
    }
    found = list(vllm_sequences(response, 0))
    places = [
        (0 if p < prompt else n, p)
        for n, routed in enumerate(found)
        if routed is not None
        for p in range(routed.start, routed.start + len(routed.experts))
    ]
    assert len(places) == len(set(places)) == prompt + choices * (output - 1)
    assert all(routed is not None and routed.output == output for routed in found)


@given(st.integers(0, 9), st.integers(1, 6), st.integers(0, 9))
def test_a_start_puts_every_row_where_it_was(prompt: int, output: int, start: int) -> None:
    rows = prompt + output - 1
    start = min(start, prompt)
    ids = np.arange(rows * 2 * 2).reshape(rows, 2, 2).astype("<i4")[start:]
    meta = {"prompt_tokens": prompt, "completion_tokens": output, "routed_experts": text(ids)}
    for asked in (start, None):  # asked for, and worked out of a file
        (routed,) = sglang_sequences({"meta_info": meta}, 2, 2, asked)
        assert routed is not None and (routed.experts == ids).all()
        assert routed.start == start


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_numbers_of_tokens_that_are_none_are_refused(usage: dict[str, Any]) -> None:
    sent = text(npy(np.zeros((3, 2, 2), np.uint8)))
    with pytest.raises(ValueError, match="no number of tokens"):
        list(vllm_sequences({"usage": usage, "choices": [{"routed_experts": sent}]}))


def test_more_rows_than_routed_tokens_are_refused() -> None:
    sent = text(npy(np.zeros((9, 2, 2), np.uint8)))
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    with pytest.raises(ValueError, match="9 rows from 0 on, of 8 routed tokens"):
        list(vllm_sequences({"usage": usage, "choices": [{"routed_experts": sent}]}))
