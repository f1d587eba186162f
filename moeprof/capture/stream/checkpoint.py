"""A checkpoint's tensors where they lie on disk, read one at a time.

Format of a safetensors file: 8 bytes of header length, little-endian, a JSON header of dtype, shape
and offsets by name, then the bytes (github.com/huggingface/safetensors, README.md, "Format"). A
sharded checkpoint is several such files and an index that names them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.stream.reading import fresh_bytes, padded, read_into
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # what the format allows


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk. `stored[...]` reads it, which is how transformers asks for tensors."""

    file: Path
    start: int  # of its bytes in the file
    nbytes: int
    dtype: str  # as the format names it, "BF16" say
    shape: tuple[int, ...]

    working_bytes = 0  # that reading takes beside the result

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """What is read for it: itself."""
        return (self,)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of its numbers."""
        from safetensors.torch import _TYPES

        found: torch.dtype = _TYPES[self.dtype]
        return found

    def pieces(self, nbytes: int) -> Iterator[tuple[int, StoredTensor]]:
        """Its numbers in pieces of at most `nbytes` (a multiple of 8), and where each begins."""
        size = self.torch_dtype.itemsize
        for at in range(0, self.nbytes, nbytes):
            some = min(nbytes, self.nbytes - at)
            yield (
                at // size,
                replace(self, start=self.start + at, nbytes=some, shape=(some // size,)),
            )

    def row(self, number: int) -> StoredTensor:
        """[1, ...]: one of the first dimension."""
        nbytes = self.nbytes // self.shape[0]
        start = self.start + number * nbytes
        return replace(self, start=start, nbytes=nbytes, shape=(1, *self.shape[1:]))

    def tensor(self, raw: NDArray[np.uint8]) -> torch.Tensor:
        """The tensor whose bytes are `raw`, in the same memory where that is aligned."""
        import torch

        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.torch_dtype)
        if raw.ctypes.data % self.torch_dtype.itemsize:
            raw = raw.copy()
        return torch.from_numpy(raw).view(self.torch_dtype).reshape(self.shape)

    def put(self, stored: Sequence[torch.Tensor], place: torch.Tensor) -> None:
        """Copy its one part to `place`, as that is typed."""
        place.copy_(stored[0])

    def __getitem__(self, everything: Any) -> torch.Tensor:
        """The tensor on the CPU, in memory of its own."""
        memory = fresh_bytes(padded(self.start, self.nbytes))
        return self.tensor(read_into(memory, self.file, self.start, self.nbytes))


def open_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """By name, the tensors of the safetensors checkpoint in `folder`, sharded or single.

    Raises InputError, naming the file, for a checkpoint that is missing, cut or no safetensors.
    """
    if (folder / INDEX).is_file():
        files = sorted(set(_weight_map(folder / INDEX).values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        raise InputError(f"{folder}: holds neither {INDEX} nor {SINGLE}: stream reads safetensors")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        tensors |= _read_header(folder / name)
    return tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if isinstance(found, dict) and all(isinstance(name, str) for name in found.values()):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{index}: is no index of a safetensors checkpoint, fetch it again")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, 8 + length, entry) for name, entry in header.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: is no safetensors file, or cut off: fetch it again") from None
    if any(tensor.start + tensor.nbytes > size for tensor in tensors.values()):
        raise InputError(f"{path}: is cut off, fetch it again")
    return tensors


def _stored(path: Path, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(path, base + begin, end - begin, entry["dtype"], tuple(entry["shape"]))
