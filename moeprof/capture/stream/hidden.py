"""Hidden states between two layers: a row a token, in the files of a run by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.capture.stream.chunks import Piece
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.capture.stream.store import RowFile, Store

if TYPE_CHECKING:
    import torch


class HiddenStates:
    """What goes into every layer of a run over `sequences`, kept in `store`."""

    def __init__(self, store: Store, sequences: Sequence[TokenSequence]) -> None:
        self._store = store
        self._starts = np.cumsum([0, *(len(sequence) for sequence in sequences)])
        self._token: tuple[tuple[int, ...], torch.dtype] | None = None  # shape and type of one

    def restore(self) -> None:
        """What the run before wrote, if it finished a layer, is there to be read."""
        import torch

        state = self._store.state()
        if "shape" in state:
            self._token = (tuple(state["shape"]), getattr(torch, state["dtype"]))

    def state(self) -> dict[str, Any]:
        """What `restore` has to find."""
        assert self._token is not None
        shape, dtype = self._token
        return {"shape": list(shape), "dtype": str(dtype).rpartition(".")[2]}

    def first_row(self, number: int) -> int:
        """Where the tokens of a sequence begin among those of all."""
        return int(self._starts[number])

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        return int(self._starts[-1])

    def read(self, layer: int, piece: Piece) -> torch.Tensor:
        """[rows, columns, ...] on the CPU, that go into `layer`."""
        import torch

        assert self._token is not None
        shape, dtype = self._token
        file, starts = self._file(layer), [self.first_row(n) + piece.start for n in piece.numbers]
        raw = np.stack([file.read(start, len(piece)) for start in starts])
        return torch.from_numpy(raw).view(dtype).reshape(len(starts), len(piece), *shape)

    def write(self, layer: int, piece: Piece, hidden: torch.Tensor) -> None:
        """[rows, columns, ...] that go into `layer`."""
        import torch

        self._token = (tuple(hidden.shape[2:]), hidden.dtype)
        file = self._file(layer)
        for number, rows in zip(piece.numbers, hidden.cpu().contiguous(), strict=True):
            values = rows.reshape(-1).view(torch.uint8).numpy()
            file.write(self.first_row(number) + piece.start, values)

    def _file(self, layer: int) -> RowFile:
        assert self._token is not None
        shape, dtype = self._token
        token_bytes = int(np.prod(shape, dtype=np.int64)) * int(dtype.itemsize)
        return self._store.file(f"hidden{layer % 2}", token_bytes)
