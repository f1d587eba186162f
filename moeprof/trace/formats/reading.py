"""Opening foreign files: compression, the first bytes, JSON, lines in bounded pieces."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from moeprof.errors import InputError
from moeprof.trace.formats.block import Head

HEAD_BYTES = 1 << 20  # a response may have much before its routing
PIECE_BYTES = 8 << 20

# What the libraries under the readers raise on bytes that are not what they seemed to be.
MALFORMED = (
    ValueError,  # json, numpy, Arrow, Unicode
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    EOFError,
    MemoryError,  # a header that claims a petabyte
    RecursionError,
    NotImplementedError,
    pa.ArrowException,
    zlib.error,
    lzma.LZMAError,
    OSError,  # a folder where a file should be, a bad gzip
    SyntaxError,  # numpy reads its headers as Python literals
    tokenize.TokenError,
    zipfile.BadZipFile,
    struct.error,
)


@contextmanager
def reading(path: Path, format: str) -> Iterator[None]:
    """Turn what is wrong with the bytes of `path` into one InputError that names it."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from None
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as {format}: {reason}") from None


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The content of `path`, decompressed if it is gzip or zstd."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield io.BufferedReader(unpacked, PIECE_BYTES)
        elif start == b"\x28\xb5\x2f\xfd":
            with pa.CompressedInputStream(pa.PythonFile(file), "zstd") as unpacked:
                yield unpacked
        else:
            yield file


def read_head(path: Path) -> Head:
    """What detection needs to see of a file or a folder. InputError if there is neither."""
    if path.is_dir():
        return Head(path, b"", tuple(sorted(entry.name for entry in path.iterdir())))
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with reading(path, "a file"), open_bytes(path) as file:
        data = file.read(HEAD_BYTES)
    if data[:4] == b"PK\x03\x04":
        with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
            return Head(path, data, tuple(archive.namelist()))
    return Head(path, data)


def read_json(path: Path) -> Any:
    """The one document in `path`."""
    with open_bytes(path) as file:
        return json.loads(file.read().decode("utf-8-sig"))


def line_pieces(path: Path, size: int = PIECE_BYTES) -> Iterator[bytes]:
    """Whole lines of `path`, about `size` bytes at a time; the last may lack its newline."""
    rest = b""
    with open_bytes(path) as file:
        while data := _read_to_end_of_file(file, size):
            lines, newline, tail = (rest + data).rpartition(b"\n")
            rest = tail
            if newline:
                yield lines + newline
    if rest.strip():
        yield rest


def _read_to_end_of_file(file: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes; a compressed stream that was cut off ends there instead of failing."""
    try:
        return file.read(size)
    except EOFError:
        return b""
