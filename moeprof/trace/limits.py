"""How much of the disk a trace may take: what the next rows would cost, and what is kept free."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa

from moeprof.errors import TraceError
from moeprof.trace.schema import MANIFEST, SEGMENTS

MIN_BYTES = 1 << 20  # a batch and a schema of M3's 57 columns take 25 KB
_MANIFEST_GROWTH = 8192  # bytes that a manifest may gain between two looks at it
_PADDING = 64  # bytes, the most that Arrow aligns a buffer to


class SizeLimit:
    """Keeps the folder of a trace below `max_bytes`, whatever is rewritten in it meanwhile.

    Requests and telemetry have a share of their own each. A file that is rewritten stands twice
    for a moment, so room for the largest of them is kept free. Raises TraceError on a limit that
    could hold next to nothing.
    """

    def __init__(self, folder: Path, max_bytes: int, schema: pa.Schema) -> None:
        if not MIN_BYTES <= max_bytes < math.inf:  # and not NaN
            raise TraceError(f"max_bytes = {max_bytes:,}: a trace takes at least {MIN_BYTES:,}")
        self.segment_bytes = max_bytes // 16  # so that what rotates is a small part
        self.side_bytes = max_bytes // 32
        self._folder = folder
        self._max_bytes = max_bytes
        empty = pa.RecordBatch.from_pylist([], schema=schema)
        padding = _PADDING * sum(_buffers(field.type) for field in schema)
        self._batch_bytes = pa.ipc.get_record_batch_size(empty) + padding
        self._header_bytes = schema.serialize().size + _PADDING
        self._row_bits = sum(_bits(field.type) + 1 for field in schema)  # 1: null or not
        self._segments_take = self._others_take = 0
        self.measure()

    def measure(self) -> None:
        """Look at what the segments and the manifest take now."""
        segments = (self._folder / SEGMENTS).glob("*.arrows")
        self._segments_take = sum(_size(path) for path in segments)
        manifest = 2 * _size(self._folder / MANIFEST) + _MANIFEST_GROWTH  # and its draft
        # requests, telemetry, and one of them being rewritten
        self._others_take = manifest + 3 * self.side_bytes

    def batch_bytes(self, rows: int) -> int:
        """The most that one batch of `rows` takes on disk, in a segment of its own."""
        return int(self._header_bytes + self._batch_bytes + rows * self._row_bits // 8)

    def fits(self, rows: int, rewritten: int) -> bool:
        """Whether a batch of `rows` fits beside a segment of `rewritten` bytes being rewritten."""
        need = rewritten + 2 * self.batch_bytes(rows)  # the new batch may be in that segment
        if self._segments_take + self._others_take + need > self._max_bytes:
            self.measure()  # a segment may have shrunk since
        return self._segments_take + self._others_take + need <= self._max_bytes

    def ever_fits(self, rows: int) -> bool:
        """Whether a batch of `rows` would fit if there were no others."""
        return self._others_take + 2 * self.batch_bytes(rows) <= self._max_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _buffers(kind: pa.DataType) -> int:
    """Buffers of one column: which rows are null, values, and those of the items of a list."""
    return 1 + _buffers(kind.value_type) if pa.types.is_fixed_size_list(kind) else 2


def _bits(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _bits(kind.value_type)
    return int(kind.bit_width)
