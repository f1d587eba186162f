"""From rows of (token, layer) to tokens, in bounded memory and without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.formats.block import CUT, Block, Findings, unknown
from moeprof.trace.rows import Phase

REPEATED = "second row for the same token and layer"


@dataclass(frozen=True)
class LayerRows:
    """R rows, each one layer of one token. None: the file has no such column."""

    layer: NDArray[np.int32]  # [R]
    experts: NDArray[np.integer[Any]]  # [R, k]
    step: NDArray[np.int64] | None = None  # [R]
    request: NDArray[np.int32] | None = None  # [R]
    position: NDArray[np.int64] | None = None  # [R]
    phase: NDArray[np.int8] | None = None  # [R] of Phase
    token_id: NDArray[np.int32] | None = None  # [R]
    weights: NDArray[np.floating[Any]] | None = None  # [R, k]

    def __len__(self) -> int:
        return len(self.layer)

    def slice(self, start: int, stop: int | None = None) -> LayerRows:
        """Rows from `start` up to `stop`."""
        parts: list[Any] = [None if a is None else a[start:stop] for a in _arrays(self)]
        return LayerRows(*parts)


def _arrays(rows: LayerRows) -> list[NDArray[Any] | None]:
    return [getattr(rows, column.name) for column in fields(rows)]


def _joined(parts: Sequence[LayerRows]) -> LayerRows:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*map(_arrays, parts), strict=True)
    return LayerRows(*(None if c[0] is None else np.concatenate(c) for c in columns))  # type: ignore[arg-type]


def assemble(
    pieces: Iterator[LayerRows], found: Findings, *, drop_cut: bool = True
) -> Iterator[Block]:
    """Tokens of consecutive `pieces` of one file.

    With a step column, rows of one step with the same request and position are one token wherever
    in the step they stand; where the file has no positions, the n-th row of each layer is the n-th
    token. Without a step column a token ends where its key changes or the layer does not
    ascend, and every token is a step. Memory holds one piece and the largest step.

    The last token of a file is left out if it lacks layers at its end that others have: the file
    was cut off in the middle of it.
    """
    held: list[LayerRows] = []
    last_layer, step = -1, 0
    for piece in pieces:
        held.append(piece)
        boundary = _last_boundary(held)
        if boundary is None:
            continue
        rows = _joined(held)
        whole, held = rows.slice(0, boundary), [rows.slice(boundary)]
        block = _tokens(whole, step, found)
        last_layer, step = max(last_layer, block.layers[-1]), int(block.step[-1]) + 1
        yield block
    if held and sum(map(len, held)):
        block = _tokens(_joined(held), step, found)
        yield _without_cut(block, last_layer, found) if drop_cut else block


def _last_boundary(held: Sequence[LayerRows]) -> int | None:
    """Where the last token, or step, of the rows starts; None if it is the only one."""
    before = sum(map(len, held[:-1]))
    piece = held[-1]
    if not len(piece):
        return None
    if before:  # one row of what waits, to see whether the piece starts something new
        piece = _joined([held[-2].slice(len(held[-2]) - 1), piece]) if len(held[-2]) else piece
    starts = _changes(piece.step) if piece.step is not None else _starts(piece)
    found = np.flatnonzero(starts)
    if not len(found):
        return None
    shift = before - 1 if before and len(held[-2]) else before
    boundary = int(found[-1]) + shift
    return boundary or None


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """[R] where a value differs from the one before; the first does not."""
    changed = np.zeros(len(values), bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _starts(rows: LayerRows) -> NDArray[np.bool_]:
    """[R] where a run of one token's ascending layers starts; the first row is not marked."""
    starts = np.zeros(len(rows), bool)
    starts[1:] = rows.layer[1:] <= rows.layer[:-1]
    for key in (rows.step, rows.request, rows.position):
        if key is not None:
            starts |= _changes(key)
    return starts


def _tokens(rows: LayerRows, step: int, found: Findings) -> Block:
    """All `rows` as tokens; `step` is that of the first token where the file has none."""
    starts = _starts(rows)
    starts[:1] = True
    token = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    if rows.step is not None:
        token, first = _regrouped(rows, token, first)
    tokens = len(first)
    layers, column = np.unique(rows.layer, return_inverse=True)
    place = token * len(layers) + column
    experts, weights, written = _scattered(rows, place, tokens * len(layers))
    found.skip(REPEATED, len(rows) - written)
    shape = (tokens, len(layers), rows.experts.shape[1])
    return Block(
        tuple(layers.tolist()),
        experts.reshape(shape),
        step=np.arange(step, step + tokens) if rows.step is None else rows.step[first],
        request=unknown(tokens) if rows.request is None else rows.request[first],
        position=unknown(tokens) if rows.position is None else _narrow(rows.position[first]),
        phase=_unknown_phase(tokens) if rows.phase is None else rows.phase[first],
        weights=None if weights is None else weights.reshape(shape),
        token_id=None if rows.token_id is None else rows.token_id[first],
    )


def _unknown_phase(tokens: int) -> NDArray[np.int8]:
    return np.full(tokens, Phase.UNKNOWN, np.int8)


def _narrow(position: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.clip(position, -1, np.iinfo(np.int32).max).astype(np.int32)


def _scattered(
    rows: LayerRows, place: NDArray[np.int64], places: int
) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """Ids and weights [places, k] at their place, -1 where there is none, and how many are."""
    if places == len(place) and (place == np.arange(places)).all():
        return rows.experts, rows.weights, places
    experts = np.full((places, rows.experts.shape[1]), -1, rows.experts.dtype)
    experts[place[::-1]] = rows.experts[::-1]  # of two rows for one place the first stays
    seen = np.zeros(places, bool)
    seen[place] = True
    if rows.weights is None:
        return experts, None, int(seen.sum())
    weights = np.zeros((places, rows.experts.shape[1]), rows.weights.dtype)
    weights[place[::-1]] = rows.weights[::-1]
    return experts, weights, int(seen.sum())


def _regrouped(
    rows: LayerRows, token: NDArray[np.int64], first: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join runs of one token that stand apart, as in files that go layer by layer."""
    if rows.position is None:
        if len(first) <= np.bincount(rows.layer).max(initial=0):
            return token, first  # token by token: no layer has more rows than there are runs
        token = first = np.arange(len(rows))
    keys = [key[first] for key in (rows.step, rows.request, rows.position) if key is not None]
    if rows.position is None:
        keys.append(_occurrence(keys, rows.layer))
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    if new.all():
        return token, first  # every run was a whole token
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(new) - 1
    leader = np.full(group.max() + 1, len(order), np.int64)
    np.minimum.at(leader, group, np.arange(len(order)))
    rank = np.empty(len(leader), np.int64)
    rank[np.argsort(leader)] = np.arange(len(leader))  # tokens in the order they first appear
    return rank[group][token], first[np.sort(leader)]


def _occurrence(keys: Sequence[NDArray[Any]], layer: NDArray[np.int32]) -> NDArray[np.int64]:
    """[runs] which token among those of equal `keys` a run is: the how-many-eth of its layer."""
    keys = [*keys, layer]
    order = np.lexsort(keys[::-1])
    same = np.ones(len(order) - 1, bool)
    for key in keys:
        same &= np.diff(key[order]) == 0
    index = np.arange(len(order))
    begins = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), index, 0))
    number = np.empty(len(order), np.int64)
    number[order] = index - begins
    return number


def _without_cut(block: Block, last_layer: int, found: Findings) -> Block:
    """The block without its last token if that lacks the last layers of the file."""
    recorded = block.experts[-1, :, 0] >= 0
    own_last = max(np.array(block.layers)[recorded], default=-1)
    others = np.atleast_1d((block.experts[:-1, :, 0] >= 0).any(axis=0))
    last = max([last_layer, *np.array(block.layers)[others]])
    if own_last >= last:
        return block
    found.skip(CUT)
    return take(block, slice(0, len(block) - 1))


def take(block: Block, chosen: Any) -> Block:
    """The tokens `chosen`, a slice or a mask."""
    return Block(
        block.layers,
        block.experts[chosen],
        block.step[chosen],
        block.request[chosen],
        block.position[chosen],
        block.phase[chosen],
        None if block.weights is None else block.weights[chosen],
        None if block.token_id is None else block.token_id[chosen],
    )
