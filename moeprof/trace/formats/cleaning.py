"""What every import goes through: places that hold no expert, warm-up, rows out of order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import take
from moeprof.trace.formats.block import Block, Findings

WARM_UP = "warm-up"
NO_LAYER = "token without a recorded layer"
SAME_IDS = "place whose ids are all the same (dense layer or gap)"
FEWER_IDS = "place with fewer experts than the others"

# Profiling and warm-up forwards feed thousands of equal tokens; traffic never repeats all layers
# of a token this often.
WARM_UP_TOKENS = 256
_MOST = 65_536  # experts, layers: what a trace can hold
_LAGS = 64
_SAMPLE = 4096


def cleaned(blocks: Iterator[Block], found: Findings, *, keep_warmup: bool) -> Iterator[Block]:
    """`blocks` with impossible places marked, empty tokens and, unless kept, warm-up left out."""
    marked = (_without_empty(_marked(block, found), found) for block in _checked(blocks))
    return marked if keep_warmup else without_warmup(marked, found)


def _checked(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks. InputError if one holds a number that a trace cannot."""
    step = 0
    for block in blocks:
        if len(block):
            _check(block, step)
            step = int(block.step[-1])
            yield block


def _check(block: Block, step: int) -> None:
    if block.experts.dtype.kind not in "iu":
        raise InputError(f"expert ids are {block.experts.dtype}, not integers")
    if block.experts.size and block.experts.max() >= _MOST:
        raise InputError(f"expert id {block.experts.max()} is too large to be one")
    if block.layers and not 0 <= block.layers[0] <= block.layers[-1] < _MOST:
        raise InputError(f"layer {min(block.layers)} to {max(block.layers)} is no index of a layer")
    if (block.step[1:] < block.step[:-1]).any() or block.step[0] < step:
        raise InputError("steps must not be negative and never decrease")


def _marked(block: Block, found: Findings) -> Block:
    """Ids of -1 where a place holds no top-k."""
    ids = block.experts
    k = ids.shape[2]
    negative = (ids < 0).any(axis=2) if ids.dtype.kind == "i" else np.zeros(ids.shape[:2], bool)
    partly = negative & ~(ids < 0).all(axis=2) if negative.any() else negative
    found.skip(FEWER_IDS, int(partly.sum()))
    same = np.zeros_like(negative)
    if k > 1:
        same = (ids[:, :, 0] == ids[:, :, 1]) & ~negative
        if same.any():
            same &= (ids == ids[:, :, :1]).all(axis=2)
    found.skip(SAME_IDS, int(same.sum()))
    if not (partly.any() or same.any()):
        return block
    signed = ids.astype(np.int32)
    signed[partly | same] = -1
    return replace(block, experts=signed)


def recorded_places(block: Block) -> NDArray[np.bool_]:
    """[T, L] where a layer was recorded."""
    if block.experts.dtype.kind == "u":
        return np.ones(block.experts.shape[:2], bool)
    return np.asarray(block.experts[:, :, 0] >= 0)


def _without_empty(block: Block, found: Findings) -> Block:
    some = recorded_places(block).any(axis=1)
    found.skip(NO_LAYER, int((~some).sum()))
    return block if some.all() else take(block, some)


def without_warmup(blocks: Iterator[Block], found: Findings) -> Iterator[Block]:
    """Leave out runs of `WARM_UP_TOKENS` and more tokens that are routed alike in every layer."""
    run = _Run()
    for block in blocks:
        if len(block):
            yield from run.take(block, found)
    yield from run.finish(found)


class _Run:
    """The run of equal tokens at the end of what was read."""

    def __init__(self) -> None:
        self._last: tuple[tuple[int, ...], NDArray[Any]] | None = None
        self._length = 0
        self._held: list[Block] = []  # the run, as long as it may still be traffic

    def take(self, block: Block, found: Findings) -> Iterator[Block]:
        ids = block.experts.reshape(len(block), -1)
        new = np.ones(len(block), bool)
        new[1:] = (ids[1:] != ids[:-1]).any(axis=1)
        new[0] = self._last is None or not self._continues(block)
        starts = np.append(np.flatnonzero(new), len(block))
        if starts[0] > 0 or not new.any():  # the run goes on into this block
            self._extend(take(block, slice(0, int(starts[0]))), found)
        yield from self._runs(block, starts, found)
        self._last = (block.layers, block.experts[-1])

    def _continues(self, block: Block) -> bool:
        assert self._last is not None
        layers, ids = self._last
        return layers == block.layers and bool((ids == block.experts[0]).all())

    def _runs(self, block: Block, starts: NDArray[np.int64], found: Findings) -> Iterator[Block]:
        """Runs that start in `block`: all but the last are over."""
        if len(starts) < 2:
            return
        yield from self.finish(found)
        last = int(starts[-2])
        lengths = np.diff(starts[:-1])
        keep = np.ones(last - int(starts[0]), bool)
        for index in np.flatnonzero(lengths >= WARM_UP_TOKENS):  # a handful
            begin = int(starts[index] - starts[0])
            keep[begin : begin + int(lengths[index])] = False
        found.skip(WARM_UP, int((~keep).sum()))
        before = take(block, slice(int(starts[0]), last))
        if keep.any():
            yield before if keep.all() else take(before, keep)
        self._extend(take(block, slice(last, len(block))), found)

    def _extend(self, part: Block, found: Findings) -> None:
        self._length += len(part)
        if self._length >= WARM_UP_TOKENS:  # it is warm-up whatever follows: count, hold nothing
            found.skip(WARM_UP, len(part) + sum(map(len, self._held)))
            self._held = []
        else:
            self._held.append(part)

    def finish(self, found: Findings) -> Iterator[Block]:
        """The run is over: what is held was traffic."""
        held, self._held, self._length = self._held, [], 0
        yield from held


def interleaving(block: Block) -> int | None:
    """By how many rows neighbouring tokens seem to lie apart; None if they are neighbours.

    A token resembles the one before it more than any other: where the share of equal experts peaks
    at a greater lag, rows of several sequences were interleaved.
    """
    if len(block) < 4 * _LAGS or (block.request[:1] != block.request[: 4 * _LAGS]).any():
        return None
    recorded = recorded_places(block)
    layer = int(recorded.sum(axis=0).argmax())
    ids = block.experts[recorded[:, layer], layer][:_SAMPLE].astype(np.int64)
    if len(ids) < 4 * _LAGS:
        return None
    shares = np.array([_equal_share(ids, lag) for lag in range(1, _LAGS + 1)])
    best = int(shares.argmax())
    typical, spread = float(np.median(shares)), float(shares.std()) + 1e-9
    stands_out = shares[best] > typical + 4 * spread and shares[best] > 1.3 * shares[0]
    return best + 1 if best and stands_out else None


def _equal_share(ids: NDArray[np.int64], lag: int) -> float:
    """Mean share of a token's experts that the token `lag` before it chose too."""
    equal = ids[lag:, :, None] == ids[:-lag, None, :]
    return float(equal.any(axis=2).mean())
