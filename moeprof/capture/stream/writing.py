"""From the files of a finished run to its trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.layout import Layout
from moeprof.capture.naming import request_key, request_name
from moeprof.capture.stream.sequences import TokenColumns, TokenSequence
from moeprof.capture.stream.store import Store
from moeprof.model import MoEModel
from moeprof.trace import Request, TokenRows, TraceWriter
from moeprof.trace.schema import expert_dtype

TOGETHER = 8192  # tokens that are written at once


def write_trace(
    path: Path,
    model: MoEModel,
    layers: Sequence[int],
    layout: Layout,
    sequences: Sequence[TokenSequence],
    store: Store,
    *,
    token_ids: bool,
    request_names: str,
    force: bool,
) -> Path:
    """The trace at `path` of everything that `store` holds."""
    import transformers

    key = request_key()
    names = request_names if any(s.name is not None for s in sequences) else "none"
    with TraceWriter(
        path,
        model,
        layers=layers,
        engine="transformers",
        engine_version=transformers.__version__,
        weights=layout.weights,
        margins=layout.margins,
        token_ids=token_ids,
        request_names=names,
        force=force,
    ) as writer:
        for index, sequence in enumerate(sequences):
            told = None if sequence.name is None else request_name(sequence.name, names, key)
            writer.put_request(_request(index, sequence, told))
        columns = TokenColumns.of(sequences)
        ids = np.concatenate([sequence.ids for sequence in sequences]).astype(np.int32)
        for start in range(0, len(ids), TOGETHER):
            chunk = slice(start, min(start + TOGETHER, len(ids)))
            kept = _Routing(store, layout, len(ids), chunk)
            writer.write(_rows(kept, columns, ids if token_ids else None, model.experts))
    return writer.path


class _Routing:
    """What the files say of the tokens of `chunk`."""

    def __init__(self, store: Store, layout: Layout, tokens: int, chunk: slice) -> None:
        self._store, self._layout, self._tokens, self.chunk = store, layout, tokens, chunk

    def experts(self) -> NDArray[np.int16]:
        """[T, L, k]"""
        return self._of("experts", np.int16, (self._layout.top_k,))

    def weights(self) -> NDArray[np.float16] | None:
        """[T, L, k]"""
        wanted = self._layout.weights
        return self._of("weights", np.float16, (self._layout.top_k,)) if wanted else None

    def margins(self) -> NDArray[np.float16] | None:
        """[T, L]"""
        return self._of("margins", np.float16, ()) if self._layout.margins else None

    def _of(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        count, file = self.chunk.stop - self.chunk.start, self._store.file(name)
        starts = (slot * self._tokens + self.chunk.start for slot in range(self._layout.layers))
        layers = [file.read(start, count).view(dtype).reshape(count, *shape) for start in starts]
        return np.stack(layers, axis=1)


def _rows(
    kept: _Routing, columns: TokenColumns, ids: NDArray[np.int32] | None, experts: int
) -> TokenRows:
    """An id that is no expert's makes its layer null for that token."""
    chosen, chunk = kept.experts(), kept.chunk
    known = (chosen >= 0) & (chosen < experts)
    recorded = np.logical_and.reduce(known, axis=2)
    return TokenRows(
        step=columns.step[chunk],
        request=columns.request[chunk],
        position=columns.position[chunk],
        phase=columns.phase[chunk],
        experts=chosen.astype(expert_dtype(experts)),
        recorded=None if recorded.all() else recorded,
        weights=kept.weights(),
        margins=kept.margins(),
        token_id=None if ids is None else ids[chunk],
    )


def _request(index: int, sequence: TokenSequence, name: str | None) -> Request:
    return Request(
        index=index,
        label=sequence.label,
        prompt_tokens=sequence.prompt_tokens,
        output_tokens=sequence.output_tokens,
        name=name,
    )
