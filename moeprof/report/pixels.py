"""A matrix of loads as a PNG of one pixel a cell: 57 x 128 experts take 6 KB, not 400 KB of SVG."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

# Diverging around an even load, blue below and orange above, told apart by every common colour
# vision; the middle is the page's own paper, so that what deviates is what shows.
LIGHT = ("#053d6b", "#2f7fb8", "#9cc8e4", "#f4f2ee", "#f6bd82", "#d9691e", "#7a2c05")
DARK = ("#8fd0ff", "#3f93cf", "#1f4c6d", "#23262b", "#77451c", "#d97a2b", "#ffd09a")
UNUSED_LIGHT, UNUSED_DARK = "#1b1b1b", "#000000"

OCTAVES = 2.0  # colours end at 2^-2 and 2^2 times the mean


def colour_index(load: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[layers, experts] palette entries: 0 for an unused expert, 1 to 255 by load over mean."""
    mean = load.mean(axis=1, keepdims=True)
    ratio = np.divide(load, mean, out=np.ones(load.shape), where=mean > 0)
    octave = np.log2(np.where(ratio > 0, ratio, 1)).clip(-OCTAVES, OCTAVES)
    index = np.round(128 + 127 * octave / OCTAVES).astype(np.uint8)
    index[(load == 0) & (mean > 0)] = 0
    return index


def palette(stops: tuple[str, ...], unused: str) -> bytes:
    """256 RGB entries: the colour of unused experts, then `stops` blended."""
    rgb = np.array([_rgb(stop) for stop in stops], float)
    place = np.linspace(0, len(stops) - 1, 255)
    blended = np.stack([np.interp(place, range(len(stops)), rgb[:, c]) for c in range(3)], axis=1)
    return bytes(_rgb(unused)) + np.round(blended).astype(np.uint8).tobytes()


def png_uri(index: NDArray[np.uint8], colours: bytes) -> str:
    """`index` [rows, columns] as the data URI of an indexed PNG."""
    rows, columns = index.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), index], axis=1)  # filter byte 0
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"PLTE", colours)
        + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
