"""A checkpoint's tensors where they lie on disk, read one at a time.

Format of a safetensors file: 8 bytes of header length, little-endian, a JSON header of dtype, shape
and offsets by name, then the bytes (github.com/huggingface/safetensors, README.md, "Format"). A
sharded checkpoint is several such files and an index that names them.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.reading import fresh_bytes, read_all
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # what the format allows
CHUNK_BYTES = 8 << 20


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

    def __getitem__(self, everything: Any) -> torch.Tensor:
        """The tensor on the CPU, in memory of its own."""
        import torch
        from safetensors.torch import _TYPES

        raw = fresh_bytes(self.nbytes)
        read_all([(self.file, self.start, raw)])
        if not self.nbytes:
            return torch.empty(self.shape, dtype=_TYPES[self.dtype])
        return torch.from_numpy(raw).view(_TYPES[self.dtype]).reshape(self.shape)


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


class ReadAhead:
    """Reads tensors that will be wanted next, in a thread, so that the system has them cached.

    They take no memory of this process. At most `limit` bytes are read, or the system would let go
    of the first to cache the last.
    """

    def __init__(self, tensors: Iterable[StoredTensor], limit: int) -> None:
        self._tensors = list(tensors)
        self._limit = limit
        self.nbytes = 0  # read so far
        self.seconds = 0.0  # that it took
        self.done: set[tuple[Path, int]] = set()  # files and places of what was read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moeprof-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading, and wait until it has stopped."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        started, buffer = time.monotonic(), bytearray(CHUNK_BYTES)
        for tensor in self._tensors:
            if self.nbytes + tensor.nbytes > self._limit or self._stop.is_set():
                return
            try:
                self._touch(tensor, memoryview(buffer))
            except OSError:
                return  # who reads it in earnest will say what is wrong
            self.done.add((tensor.file, tensor.start))
            self.seconds = time.monotonic() - started

    def _touch(self, tensor: StoredTensor, buffer: memoryview) -> None:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            left = tensor.nbytes
            while left > 0 and not self._stop.is_set():
                read = file.readinto(buffer[: min(left, len(buffer))])
                if not read:
                    return
                left -= read
                self.nbytes += read
