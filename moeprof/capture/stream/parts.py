"""A part of the model, and how its tensors are filled from the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.checkpoint import StoredTensor
from moeprof.capture.stream.quantized import DecodedTensor
from moeprof.capture.stream.reading import padded

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 16 << 20  # of one read: large, or a disk does not give its full rate
READERS = 4  # reads under way at once: fewer leave a fast disk idle between two
PLACERS = os.cpu_count() or 1  # threads that copy or decode
ALIGNED_BYTES = 64  # where tensors begin in memory that they share

Source = StoredTensor | DecodedTensor


@dataclass(frozen=True)
class Entry:
    """Where a tensor of the checkpoint goes."""

    key: str
    target: str  # the first of the model's tensors it becomes part of
    pattern: str | None  # of the converter that takes it, None where it is only renamed


@dataclass(frozen=True)
class Fill:
    """One step of filling a tensor of the model: what is read, and where it goes."""

    source: Source
    target: str  # the model's name of the tensor
    index: tuple[Any, ...] = ()  # of what is filled in it
    flat: slice | None = None  # of that, laid out in a row

    @property
    def staged_bytes(self) -> int:
        """Memory that what is read takes."""
        return sum(padded(part.start, part.nbytes) for part in self.source.parts)

    def into(self, target: torch.Tensor) -> torch.Tensor:
        """The view of `target` that is filled."""
        view = target[self.index]
        return view if self.flat is None else view.view(-1)[self.flat]


def fills(source: Source, target: str, index: tuple[Any, ...] = ()) -> Iterator[Fill]:
    """Steps of putting a tensor at `index` of `target`, small enough to go on side by side."""
    if isinstance(source, StoredTensor):
        for at, piece in source.pieces(PIECE_BYTES):
            yield Fill(piece, target, index, slice(at, at + piece.shape[0]))
    else:
        matrices = list(source.rows())
        for number, matrix in enumerate(matrices):
            own = (*index, slice(number, number + 1)) if len(matrices) > 1 else index
            yield Fill(matrix, target, own)


@dataclass(frozen=True)
class Part:
    """What stands at `prefix` in the model, without what stands below `but`."""

    prefix: str
    but: str | None
    tensors: Mapping[str, torch.Tensor]  # on the meta device: those that are filled
    fills: Sequence[Fill]
    rest: Sequence[Entry]  # what transformers converts
    stored_bytes: int  # of all of it on disk

    @property
    def nbytes(self) -> int:
        """Of memory that holds `tensors`."""
        return sum(_aligned(tensor.nbytes) for tensor in self.tensors.values())

    @property
    def reading_bytes(self) -> int:
        """The least that reading takes beside it: some steps at once, read or being decoded."""
        staged = sorted((fill.staged_bytes for fill in self.fills), reverse=True)
        working = max((fill.source.working_bytes for fill in self.fills), default=0)
        return sum(staged[:READERS]) + PLACERS * working

    def views(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """`tensors` in `memory`, bytes."""
        at, found = 0, {}
        for name, meta in self.tensors.items():
            raw = memory[at : at + meta.nbytes]
            found[name] = raw.view(meta.dtype).view(meta.shape)
            at += _aligned(meta.nbytes)
        return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
