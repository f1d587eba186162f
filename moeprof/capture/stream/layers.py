"""All tokens through all layers: what is read, run, kept and let go, one layer after the other."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.capture.layout import Layout
from moeprof.capture.stream.listening import RouterListener
from moeprof.capture.stream.loading import Loader
from moeprof.capture.stream.needs import Needs, gib
from moeprof.capture.stream.sequences import TokenSequence, micro_batches
from moeprof.capture.stream.skeleton import Skeleton
from moeprof.capture.stream.store import Store
from moeprof.capture.stream.turns import LayerTurns
from moeprof.capture.transformers.routers.finding import RouterSite
from moeprof.capture.transformers.routers.scores import plan_extras
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]


@dataclass(frozen=True)
class Places:
    """Where the decoder layers stand in the model."""

    text: str  # path of the model whose forward runs them
    layers: str  # path of their list
    last: int  # the last layer that is recorded: none behind it is read

    @classmethod
    def of(cls, model: torch.nn.Module, sites: Mapping[int, Sequence[RouterSite]]) -> Places:
        """From where the routers are. InputError if the layers are no list of modules."""
        import torch

        path = next(iter(sites.values()))[0].path
        found = re.match(r"(.*?)\.\d+\.", path)
        layers = found[1] if found else ""
        if not layers or not isinstance(model.get_submodule(layers), torch.nn.ModuleList):
            raise InputError(f"{type(model).__name__}: {path} is in no list of layers")
        return cls(layers.rpartition(".")[0], layers, max(sites))

    def layer(self, index: int) -> str:
        """The path of one layer."""
        return f"{self.layers}.{index}"


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
        skeleton: Skeleton,
        places: Places,
        sites: Mapping[int, Sequence[RouterSite]],
        layout: Layout,
        sequences: Sequence[TokenSequence],
        needs: Needs,
        store: Store,
        say: Say,
    ) -> None:
        self._skeleton, self._places, self._sites = skeleton, places, sites
        self._layout, self._sequences, self._needs = layout, sequences, needs
        self._store, self._say = store, say
        self._starts = np.cumsum([0, *(len(sequence) for sequence in sequences)])
        extras = plan_extras(sites, margins=layout.margins, next_layer=False, top_k=layout.top_k)
        self._listeners = {
            layer: (
                slot,
                RouterListener(layer_sites, layout.top_k, extras[slot] if extras else None),
            )
            for slot, (layer, layer_sites) in enumerate(sites.items())
        }
        model = skeleton.model
        self._turns = LayerTurns(
            model.get_submodule(places.text), model.get_submodule(places.layers)
        )
        self.bytes_read = 0  # of the checkpoint, in this run
        self._slowest = 0.0  # seconds of a layer
        self._hidden: tuple[tuple[int, ...], torch.dtype] | None = None  # of a token

    def run(self) -> None:
        """Every layer that is not done yet."""
        import torch

        skeleton, places = self._skeleton, self._places
        frame = skeleton.part(places.text, but=places.layers)
        left = range(self._store.done, places.last + 1)
        layers = [skeleton.part(places.layer(index)) for index in left]
        with (
            torch.inference_mode(),
            Loader(skeleton, frame, layers, self._needs.ahead_bytes) as loader,
        ):
            loader.load()
            self._restore_hidden()
            for index in left:
                self._run_layer(index, loader)
                self.bytes_read = loader.nbytes

    def _run_layer(self, index: int, loader: Loader) -> None:
        started = time.monotonic()
        with loader.loaded():
            self._compute(index)
        assert self._hidden is not None
        shape, dtype = self._hidden
        self._store.finish_layer(index, shape=list(shape), dtype=str(dtype).rpartition(".")[2])
        self._report(index, time.monotonic() - started, loader)

    def _compute(self, index: int) -> None:
        listener = self._listeners.get(index)
        for batch in micro_batches(self._sequences, self._needs.rows_that_fit):
            if listener is None:
                self._run_batch(index, batch)
            else:
                slot, hears = listener
                with hears.listening():
                    tokens = self._run_batch(index, batch)
                self._keep_routing(slot, batch, hears.take(tokens))

    def _run_batch(self, index: int, batch: Sequence[int]) -> int:
        """The layer over one micro-batch, of so many tokens."""
        import torch

        ids = torch.from_numpy(np.stack([self._sequences[number].ids for number in batch]))
        given = self._read_hidden(index, batch) if index else None
        output = self._turns.run(index, ids.to(self._skeleton.device), given)
        if index < self._places.last:
            self._write_hidden(index + 1, batch, output)
        return int(ids.numel())

    def _read_hidden(self, index: int, batch: Sequence[int]) -> torch.Tensor:
        import torch

        assert self._hidden is not None
        shape, dtype = self._hidden
        length = self._length(batch)
        file = self._store.file(f"hidden{index % 2}", self._token_bytes)
        raw = np.stack([file.read(int(self._starts[number]), length) for number in batch])
        rows = torch.from_numpy(raw).view(dtype).reshape(len(batch), length, *shape)
        return rows.to(self._skeleton.device)

    def _write_hidden(self, index: int, batch: Sequence[int], output: torch.Tensor) -> None:
        import torch

        self._hidden = (tuple(output.shape[2:]), output.dtype)
        file = self._store.file(f"hidden{index % 2}", self._token_bytes)
        for number, rows in zip(batch, output.cpu().contiguous(), strict=True):
            file.write(int(self._starts[number]), rows.reshape(-1).view(torch.uint8).numpy())

    def _keep_routing(
        self, slot: int, batch: Sequence[int], heard: tuple[torch.Tensor, ...]
    ) -> None:
        ids, weights, *margins = heard
        kept: dict[str, Any] = {"experts": ids.short()}
        if self._layout.weights:
            kept["weights"] = weights.half()
        if self._layout.margins:
            if not margins:
                raise InputError(
                    f"{self._sites[list(self._sites)[slot]][0].path}: tells no scores: stream "
                    "without margins"
                )
            kept["margins"] = margins[0].half()
        first, length = slot * int(self._starts[-1]), self._length(batch)
        for name, values in kept.items():
            rows, file = values.cpu().numpy(), self._store.file(name)
            for place, number in enumerate(batch):
                part = rows[place * length : (place + 1) * length]
                file.write(first + int(self._starts[number]), part)

    def _length(self, batch: Sequence[int]) -> int:
        return len(self._sequences[batch[0]])

    @property
    def _token_bytes(self) -> int:
        assert self._hidden is not None
        shape, dtype = self._hidden
        return int(np.prod(shape, dtype=np.int64)) * int(dtype.itemsize)

    def _restore_hidden(self) -> None:
        import torch

        state = self._store.state()
        if "shape" in state:
            self._hidden = (tuple(state["shape"]), getattr(torch, state["dtype"]))
            self._say(f"goes on at layer {self._store.done}")

    def _report(self, index: int, seconds: float, loader: Loader) -> None:
        """Bytes so far, how fast they came, what the rest takes at the slowest pace."""
        self._slowest = max(self._slowest, seconds)
        left = self._places.last - index
        self._say(
            f"layer {index + 1} of {self._places.last + 1} in {seconds:.1f} s: "
            f"{gib(loader.nbytes)} read at {gib(int(loader.rate))}/s, {gib(loader.left_bytes)} and "
            f"{left * self._slowest:.0f} s left"
        )
