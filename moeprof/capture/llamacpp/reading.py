"""From the callback's log of one `llama_decode` to the routing of its tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import F32, I32, STRUCT_BYTES, Tensor
from moeprof.model import MoEModel
from moeprof.trace.schema import expert_dtype

_DTYPES = {F32: np.dtype(np.float32), I32: np.dtype(np.int32)}


@dataclass(frozen=True)
class Routed:
    """The routing of T tokens of one `llama_decode`. L layers, k experts."""

    forwards: tuple[int, ...]  # tokens of each micro-batch
    experts: NDArray[np.unsignedinteger]  # [T, L, k]
    recorded: NDArray[np.bool_]  # [T, L]
    weights: NDArray[np.float16] | None = None  # [T, L, k]
    margins: NDArray[np.float16] | None = None  # [T, L]


class LogReader:
    """Reads logs of a model's results (`tap.wanted_results`)."""

    def __init__(self, model: MoEModel, results: Mapping[str, tuple[str, ...]]) -> None:
        self._model = model
        self._kinds = tuple(results)
        self._places = {
            f"{name}-{layer}".encode(): (kind, rank, slot)
            for kind, names in results.items()
            for rank, name in enumerate(names)
            for slot, layer in enumerate(model.moe_layers)
        }

    def read(self, log: NDArray[np.uint8], tokens: int, outputs: NDArray[np.bool_]) -> Routed:
        """The routing of `tokens`. `outputs` [tokens] says whose logits were asked for.

        ValueError for what does not fit the model.
        """
        model = self._model
        shape = (tokens, len(model.moe_layers))
        pieces = self._pieces(log)
        experts = np.zeros((*shape, model.top_k), expert_dtype(model.experts))
        recorded = np.zeros(shape, bool)
        weights = np.zeros(experts.shape, np.float16) if "weights" in self._kinds else None
        margins = np.full(shape, np.nan, np.float16) if "margins" in self._kinds else None
        for slot, layer in enumerate(model.moe_layers):
            if not pieces["experts", slot]:
                continue
            ids = np.concatenate(pieces["experts", slot])
            rows = _rows_of(len(ids), outputs, layer)
            if ids.size and not 0 <= ids.min() <= ids.max() < model.experts:
                raise ValueError(f"layer {layer}: ids outside of {model.experts} experts")
            recorded[rows, slot], experts[rows, slot] = True, ids
            if weights is not None:
                weights[rows, slot] = np.concatenate(pieces["weights", slot])
            if margins is not None:
                scores = np.concatenate(pieces["margins", slot])
                margins[rows, slot] = margins_of(scores, model.top_k)
        return Routed(_forwards(pieces, tokens), experts, recorded, weights, margins)

    def _pieces(self, log: NDArray[np.uint8]) -> dict[tuple[str, int], list[NDArray[Any]]]:
        """By kind and slot the rows of each micro-batch."""
        model = self._model
        pieces: dict[tuple[str, int], list[NDArray[Any]]] = defaultdict(list)
        last: dict[tuple[str, int], int] = {}
        for name, tensor, data in entries(log):
            if name not in self._places:
                continue
            kind, rank, slot = self._places[name]
            columns = model.experts if kind == "margins" else model.top_k
            found = pieces[kind, slot]
            if found and rank > last[kind, slot]:
                found.pop()  # computed further
            found.append(as_rows(data, tensor, columns))
            last[kind, slot] = rank
        return pieces


def entries(log: NDArray[np.uint8]) -> Iterator[tuple[bytes, Tensor, NDArray[np.uint8]]]:
    """Name, struct and elements, as `kernels.load_callback` appends them."""
    at = 0
    while at < len(log):
        tensor = Tensor.from_buffer(log.data, at)
        at += STRUCT_BYTES
        nbytes = 4 * math.prod(tensor.ne) if tensor.type in _DTYPES else 0
        yield tensor.name, tensor, log[at : at + nbytes]
        at += -(-nbytes // 8) * 8


def as_rows(data: NDArray[np.uint8], tensor: Tensor, columns: int) -> NDArray[Any]:
    """[rows, columns] of gathered elements; ggml has [columns, rows] or [1, columns, rows]."""
    dtype, shape = _DTYPES.get(tensor.type), list(tensor.ne)
    if dtype is None:
        raise ValueError(f"ggml type {tensor.type} is neither F32 nor I32")
    if columns not in (shape[0], shape[1] if shape[0] == 1 else None):
        raise ValueError(f"shape {shape} has no rows of {columns}")
    return data.view(dtype).reshape(-1, columns)


def margins_of(scores: NDArray[np.floating], top_k: int) -> NDArray[np.floating]:
    """[T] score of the last chosen expert less that of the first not chosen. [T, experts]."""
    experts = scores.shape[1]
    if experts == top_k:
        return np.full(len(scores), np.nan, np.float32)
    ordered = np.partition(scores, (experts - top_k - 1, experts - top_k), axis=1)
    difference: NDArray[np.floating] = ordered[:, -top_k] - ordered[:, -top_k - 1]
    return difference


def _forwards(pieces: Mapping[tuple[str, int], list[NDArray[Any]]], tokens: int) -> tuple[int, ...]:
    """Tokens of each micro-batch, as the layers that saw all of them have it."""
    seen = {tuple(map(len, rows)) for (kind, _), rows in pieces.items() if kind == "experts"}
    whole = {sizes for sizes in seen if sum(sizes) == tokens}
    if len(whole) > 1:
        raise ValueError("layers disagree about the micro-batches")
    return whole.pop() if whole else (tokens,)


def _rows_of(count: int, outputs: NDArray[np.bool_], layer: int) -> NDArray[np.intp]:
    """Which tokens a layer's rows belong to. ValueError for a number that fits neither."""
    if count == len(outputs):
        return np.arange(count)
    if count == int(outputs.sum()):
        return np.flatnonzero(outputs)
    raise ValueError(f"layer {layer} gave {count} rows of {len(outputs)} tokens")
