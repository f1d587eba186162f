"""Token-major arrays to Arrow columns and back, without a Python loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.trace.rows import Phase, TokenRows
from moeprof.trace.schema import (
    Manifest,
    experts_column,
    margins_column,
    next_experts_column,
    next_weights_column,
    weights_column,
)

# A tile of this many tokens stays in cache while it is turned: 6 GB/s against 1.2 untiled.
_TILE = 512


def to_batch(rows: TokenRows, manifest: Manifest) -> pa.RecordBatch:
    """`rows` as one record batch of the trace's schema."""
    schema = manifest.segment_schema
    arrays: list[pa.Array] = [
        pa.array(rows.step, pa.int64()),
        pa.array(rows.request, pa.int32()),
        pa.array(rows.position, pa.int32()),
        _phase_column(rows),
    ]
    if manifest.token_ids:
        arrays.append(pa.array(rows.token_id, pa.int32()))
    dtype = schema.field(len(arrays)).type.value_type.to_pandas_dtype()
    arrays += _list_columns(rows.experts.astype(dtype, copy=False), rows.recorded)
    if rows.weights is not None:
        arrays += _list_columns(rows.weights.astype(np.float16, copy=False), rows.recorded)
    if rows.margins is not None:
        arrays += _margin_columns(rows.margins, rows.recorded)
    if rows.next_experts is not None and rows.next_weights is not None:
        seen = None if rows.recorded is None else rows.recorded[:, :-1]
        arrays += _list_columns(rows.next_experts.astype(dtype, copy=False), seen)
        arrays += _list_columns(rows.next_weights.astype(np.float16, copy=False), seen)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def check_ids(rows: TokenRows, manifest: Manifest) -> None:
    """TraceError at the first recorded id that is no expert: the narrow column would wrap it."""
    _check_ids("experts", rows.experts, rows.recorded, manifest)
    if rows.next_experts is not None:
        _check_ids("next_experts", rows.next_experts, rows.recorded, manifest)


def _check_ids(
    name: str, ids: NDArray[Any], recorded: NDArray[np.bool_] | None, manifest: Manifest
) -> None:
    if ids.dtype.kind not in "iu":
        raise TraceError(f"{name} must be integers, not {ids.dtype}")
    if not ids.size or (ids.max() < manifest.experts and (ids.dtype.kind == "u" or ids.min() >= 0)):
        return
    bad = (ids < 0) | (ids >= manifest.experts)
    if recorded is not None:
        bad &= recorded[:, : ids.shape[1], None]
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        what = "id" if name == "experts" else f"{name} id"
        raise TraceError(
            f"layer {manifest.layers[place[1]]}: {what} {ids[place]} of row {place[0]} is not one "
            f"of {manifest.experts} experts"
        )


def _phase_column(rows: TokenRows) -> pa.Array:
    if rows.phase is None:
        return pa.nulls(len(rows), pa.int8())
    return pa.array(rows.phase.astype(np.int8, copy=False), mask=rows.phase < 0)


def _margin_columns(margins: NDArray[Any], recorded: NDArray[np.bool_] | None) -> list[pa.Array]:
    """[tokens, layers] to one column a layer, null where a margin is not known."""
    unknown = np.isnan(margins)
    if recorded is not None:
        unknown |= ~recorded
    with np.errstate(over="ignore"):  # beyond float16 a margin is infinite: it is never close
        values = np.where(unknown, 0, margins).astype(np.float16)  # same input, same bytes
    pairs = zip(values.T, unknown.T, strict=True)
    return [pa.array(np.ascontiguousarray(column), mask=mask) for column, mask in pairs]


def _list_columns(values: NDArray[Any], recorded: NDArray[np.bool_] | None) -> list[pa.Array]:
    """[tokens, layers, k] to one fixed-size list column a layer."""
    columns = layer_major(values)
    masks = [None] * len(columns) if recorded is None else list(recorded.T)
    return [_list_column(column, mask) for column, mask in zip(columns, masks, strict=True)]


def _list_column(column: NDArray[Any], recorded: NDArray[np.bool_] | None) -> pa.Array:
    tokens, k = column.shape
    validity = None
    if recorded is not None and not recorded.all():
        column[~recorded] = 0  # not read by anyone, but same input, same bytes
        validity = pa.py_buffer(np.packbits(recorded, bitorder="little").tobytes())
    flat = pa.array(column.reshape(-1))
    item = pa.field("item", flat.type, False)
    return pa.Array.from_buffers(pa.list_(item, k), tokens, [validity], children=[flat])


def from_batch(batch: pa.RecordBatch, manifest: Manifest) -> TokenRows:
    """What `to_batch` made `batch` of."""
    layers, gated = manifest.layers, manifest.weights
    tokens = batch.column("token_id").fill_null(-1).to_numpy() if manifest.token_ids else None
    return TokenRows(
        step=batch.column("step").to_numpy(),
        request=batch.column("request").to_numpy(),
        position=batch.column("position").to_numpy(),
        phase=batch.column("phase").fill_null(Phase.UNKNOWN).to_numpy(),
        experts=_stacked(batch, map(experts_column, layers)),
        recorded=_recorded_places([batch.column(experts_column(layer)) for layer in layers]),
        weights=_stacked(batch, map(weights_column, layers)) if gated else None,
        token_id=tokens,
        margins=_stacked_margins(batch, layers) if manifest.margins else None,
        **(_next_arrays(batch, manifest) if manifest.next_layer else {}),
    )


def _stacked(batch: pa.RecordBatch, names: Iterable[str]) -> NDArray[Any]:
    """[tokens, columns, k] of the list columns `names`."""
    return np.stack([list_values(batch.column(name)) for name in names], axis=1)


def _next_arrays(batch: pa.RecordBatch, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """`next_experts` and `next_weights` [tokens, layers - 1, k]."""
    layers = manifest.layers[:-1]
    if not layers:
        empty = np.zeros((len(batch), 0, manifest.top_k), np.uint8)
        return {"next_experts": empty, "next_weights": empty.astype(np.float16)}
    return {
        "next_experts": _stacked(batch, map(next_experts_column, layers)),
        "next_weights": _stacked(batch, map(next_weights_column, layers)),
    }


def _stacked_margins(batch: pa.RecordBatch, layers: Sequence[int]) -> NDArray[Any]:
    """[tokens, layers], NaN where a margin is not known."""
    return np.stack([scalar_values(batch.column(margins_column(n))) for n in layers], axis=1)


def _recorded_places(columns: list[pa.Array]) -> NDArray[np.bool_] | None:
    """[tokens, layers] False where a column is null; None if none is anywhere."""
    masks = [validity(column) for column in columns]
    if all(mask is None for mask in masks):
        return None
    whole = np.ones(len(columns[0]), bool)
    return np.stack([whole if mask is None else mask for mask in masks], axis=1)


def layer_major(values: NDArray[Any]) -> NDArray[Any]:
    """[tokens, layers, k] to a new contiguous [layers, tokens, k].

    The k slots of one (token, layer) move as one wide integer where a width fits.
    """
    tokens, layers, k = values.shape
    wide = _wide_view(np.ascontiguousarray(values))
    turned = np.empty((layers, tokens, *wide.shape[2:]), wide.dtype)
    for start in range(0, tokens, _TILE):
        tile = wide[start : start + _TILE]
        turned[:, start : start + _TILE] = tile.swapaxes(0, 1)
    return turned.view(values.dtype).reshape(layers, tokens, k)


def _wide_view(values: NDArray[Any]) -> NDArray[Any]:
    """The last axis viewed through the widest integer that divides it."""
    width = values.shape[2] * values.itemsize
    for size in (8, 4, 2):
        if width % size == 0:
            wide = values.view(f"u{size}")
            return wide[..., 0] if wide.shape[2] == 1 else wide
    return values


def list_values(column: pa.Array) -> NDArray[Any]:
    """A fixed-size list column as [rows, k], zero-copy; null rows hold whatever was written.

    Arrow's own `flatten()` drops null rows and `.values` ignores slices, hence the offset; and
    other writers mark the items of a null row null as well, hence the bare buffer.
    """
    k, values = column.type.list_size, column.values
    dtype = values.type.to_pandas_dtype()
    flat = np.frombuffer(values.buffers()[1], dtype, len(values) + values.offset)[values.offset :]
    rows: NDArray[Any] = flat.reshape(-1, k)[column.offset : column.offset + len(column)]
    return rows


def scalar_values(column: pa.Array) -> NDArray[Any]:
    """A column of float16 as [rows], NaN for null."""
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float16, copy=False)


def validity(column: pa.Array) -> NDArray[np.bool_] | None:
    """True where a row is not null; None if no row is."""
    if column.null_count == 0:
        return None
    mask: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return mask


def concat_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """Consecutive parts of one recording as one."""
    if len(parts) == 1:
        return parts[0]
    recorded = None
    if any(part.recorded is not None for part in parts):
        recorded = np.concatenate([_recorded(part) for part in parts])
    phase = None
    if any(part.phase is not None for part in parts):
        phase = np.concatenate([_phase(part) for part in parts])
    return TokenRows(
        step=np.concatenate([part.step for part in parts]),
        request=np.concatenate([part.request for part in parts]),
        position=np.concatenate([part.position for part in parts]),
        phase=phase,
        experts=np.concatenate([part.experts for part in parts]),
        recorded=recorded,
        weights=_concat_present([part.weights for part in parts]),
        token_id=_concat_present([part.token_id for part in parts]),
        margins=_concat_present([part.margins for part in parts]),
        next_experts=_concat_present([part.next_experts for part in parts]),
        next_weights=_concat_present([part.next_weights for part in parts]),
    )


def _recorded(part: TokenRows) -> NDArray[np.bool_]:
    return np.ones(part.experts.shape[:2], bool) if part.recorded is None else part.recorded


def _phase(part: TokenRows) -> NDArray[np.int8]:
    return np.full(len(part), Phase.UNKNOWN, np.int8) if part.phase is None else part.phase


def _concat_present(arrays: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else None
