"""Warm-up and interleaving, however the rows come in pieces."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moeprof.trace.formats import cleaning
from moeprof.trace.formats.block import Findings, sequence_block
from moeprof.trace.formats.llamacpp import shows_stride_bug


def left_by_runs(values: list[int], limit: int) -> list[int]:
    """Places of `values` that are in no run of `limit` and more equal ones, the slow way."""
    kept, start = [], 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[start]:
            kept += range(start, place) if place - start < limit else []
            start = place
    return kept


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_runs_are_left_out_wherever_blocks_are_cut(values: list[int], cuts: list[int]) -> None:
    ids = np.stack([np.array(values, int), np.array(values, int) + 5], axis=1)[:, None]
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    blocks = [sequence_block(ids[a:b], [3], request=0, start=a) for a, b in pairwise(bounds)]
    found = Findings()
    with mock.patch.object(cleaning, "WARM_UP_TOKENS", 4):
        kept = list(cleaning.without_warmup(iter(blocks), found))
    places = [int(p) for block in kept for p in block.position]
    assert places == left_by_runs(values, 4)
    assert found.skipped.total() == len(values) - len(places)


def interleaved(stride: int, sticky: float = 0.8) -> np.ndarray:
    """[2048, 1, 4] ids of `stride` sequences in turn; a token keeps its predecessor's experts."""
    rng = np.random.default_rng(0)
    tokens = 2048 // stride
    ids = np.argsort(rng.random((stride, tokens, 64)), axis=2)[:, :, :4]
    for t in range(1, tokens):
        keep = rng.random(stride) < sticky
        ids[keep, t] = ids[keep, t - 1]
    return ids.swapaxes(0, 1).reshape(-1, 1, 4)


def test_interleaving_is_seen_and_neighbours_are_not_suspected() -> None:
    for stride in (1, 4, 8, 32):
        block = sequence_block(interleaved(stride), [0], request=0)
        assert cleaning.interleaving(block) == (None if stride == 1 else stride)
    rng = np.random.default_rng(1)
    independent = np.argsort(rng.random((2048, 1, 64)), axis=2)[:, :, :4]
    assert cleaning.interleaving(sequence_block(independent, [0], request=0)) is None


def test_sound_prompt_rows_do_not_show_the_stride_bug() -> None:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((3 * 40, 64)), axis=1)[:, :6]
    assert not shows_stride_bug(np.repeat([1, 2, 3], 40), ids)
    ranked = np.stack([rng.permutation(64)[:60].reshape(10, 6) for _ in range(3)])
    assert shows_stride_bug(np.repeat([1, 2, 3], 10), ranked.reshape(-1, 6))
