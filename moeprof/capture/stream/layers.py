"""All tokens through all layers: what is read, run, kept and let go, one layer after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.capture.layout import Layout
from moeprof.capture.stream.caching import layer_cache
from moeprof.capture.stream.chunks import Chunks, Piece
from moeprof.capture.stream.hidden import HiddenStates
from moeprof.capture.stream.listening import RouterListener
from moeprof.capture.stream.loading import Loader
from moeprof.capture.stream.needs import gib
from moeprof.capture.stream.opening import OpenedModel
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.capture.stream.store import Store
from moeprof.capture.transformers.routers.scores import plan_extras
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]


def file_rows(layers: int, layout: Layout) -> dict[str, int]:
    """Bytes a token of the routing files: one region of tokens a layer in each."""
    rows = {"experts": 2 * layout.top_k}
    if layout.weights:
        rows["weights"] = 2 * layout.top_k
    if layout.margins:
        rows["margins"] = 2
    return rows


class LayerStream:
    """A run over `sequences`. What it leaves behind is in `store`."""

    def __init__(
        self,
        opened: OpenedModel,
        layout: Layout,
        sequences: Sequence[TokenSequence],
        chunks: Chunks,
        store: Store,
        say: Say,
    ) -> None:
        self._opened, self._skeleton, self._places = opened, opened.skeleton, opened.places
        self._layout, self._sequences, self._chunks = layout, sequences, chunks
        self._store, self._say = store, say
        self._hidden = HiddenStates(store, sequences)
        sites = opened.sites
        extras = plan_extras(sites, margins=layout.margins, next_layer=False, top_k=layout.top_k)
        self._listeners = {
            layer: (
                slot,
                RouterListener(layer_sites, layout.top_k, extras[slot] if extras else None),
            )
            for slot, (layer, layer_sites) in enumerate(sites.items())
        }
        self.bytes_read = 0  # of the checkpoint, in this run
        self._slowest = 0.0  # seconds of a layer

    def run(self) -> None:
        """Every layer that is not done yet."""
        import torch

        skeleton, places = self._skeleton, self._places
        frame = skeleton.part(places.text, but=places.layers)
        left = range(self._store.done, places.last + 1)
        layers = [skeleton.part(places.layer(index)) for index in left]
        with (
            torch.inference_mode(),
            Loader(skeleton, frame, layers, self._chunks.needs.ahead_bytes) as loader,
        ):
            loader.load()
            self._hidden.restore()
            if self._store.done:
                self._say(f"goes on at layer {self._store.done}")
            for index in left:
                self._run_layer(index, loader)
                self.bytes_read = loader.nbytes

    def _run_layer(self, index: int, loader: Loader) -> None:
        started = time.monotonic()
        with loader.loaded():
            self._compute(index)
        self._store.finish_layer(index, **self._hidden.state())
        self._report(index, time.monotonic() - started, loader)

    def _compute(self, index: int) -> None:
        for pieces in self._chunks.batches(index, self._sequences):
            whole = len(pieces) == 1
            cache = None if whole else layer_cache(self._opened.text_config, index)
            for piece in pieces:
                self._run_piece(index, piece, cache)
                if cache is not None and cache.get_seq_length() != piece.stop:
                    raise InputError(
                        f"{self._places.layer(index)} keeps no keys where transformers does: its "
                        "texts cannot be cut, raise --memory or shorten them"
                    )

    def _run_piece(self, index: int, piece: Piece, cache: Any | None) -> None:
        """The layer over some columns of a micro-batch."""
        if index not in self._listeners:
            self._forward(index, piece, cache)
            return
        slot, hears = self._listeners[index]
        with hears.listening():
            self._forward(index, piece, cache)
        self._keep_routing(slot, piece, hears.take(piece.tokens))

    def _forward(self, index: int, piece: Piece, cache: Any | None) -> None:
        import torch

        device, columns = self._skeleton.device, slice(piece.start, piece.stop)
        rows = np.stack([self._sequences[number].ids[columns] for number in piece.numbers])
        given = self._hidden.read(index, piece).to(device) if index else None
        output = self._opened.turns.run(index, torch.from_numpy(rows).to(device), given, cache)
        if index < self._places.last:
            self._hidden.write(index + 1, piece, output)

    def _keep_routing(self, slot: int, piece: Piece, heard: tuple[torch.Tensor, ...]) -> None:
        ids, weights, *margins = heard
        kept: dict[str, Any] = {"experts": ids.short()}
        if self._layout.weights:
            kept["weights"] = weights.half()
        if self._layout.margins:
            if not margins:
                path = list(self._opened.sites.values())[slot][0].path
                raise InputError(f"{path}: tells no scores: stream without margins")
            kept["margins"] = margins[0].half()
        for name, values in kept.items():
            rows, file = values.cpu().numpy(), self._store.file(name)
            for place, number in enumerate(piece.numbers):
                part = rows[place * len(piece) : (place + 1) * len(piece)]
                first = slot * self._hidden.rows + self._hidden.first_row(number)
                file.write(first + piece.start, part)

    def _report(self, index: int, seconds: float, loader: Loader) -> None:
        """Bytes so far, how fast they came, what the rest takes at the slowest pace."""
        self._slowest = max(self._slowest, seconds)
        left = self._places.last - index
        self._say(
            f"layer {index + 1} of {self._places.last + 1} in {seconds:.1f} s: "
            f"{gib(loader.nbytes)} read at {gib(int(loader.rate))}/s, {gib(loader.left_bytes)} and "
            f"{left * self._slowest:.0f} s left"
        )
