"""libCacheSim's oracleGeneral: one access for each (step, layer, distinct expert)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.formats.block import Findings
from moeprof.trace.reader import Trace
from moeprof.trace.rows import TokenRows

_ACCESS = np.dtype(
    [("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")]
)  # packed, 24 bytes
_BATCH_ROWS = 4096
_CHUNK = 1 << 17  # accesses, 3 MiB


def write_oracle(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """Accesses in order of step, layer and expert.

    The object is layer ordinal x experts + expert, its size 1 slot, the time its step. What comes
    next is filled in backwards over the file. Memory holds a batch, a chunk, and 8 bytes an object.
    """
    found.note(
        "accesses of one event stand one after the other, by id: a cache simulator looks each up "
        "on its own (the sequential contract)"
    )
    objects, written = len(trace.layers) * trace.experts_per_layer, 0
    for events in _events(trace, objects):
        accesses = np.zeros(len(events), _ACCESS)
        accesses["time"], accesses["object"] = events // objects, events % objects
        accesses["size"] = 1
        file.write(accesses.tobytes())
        written += len(events)
    _fill_next(file, written, objects)
    return written


def _events(trace: Trace, objects: int) -> Iterator[NDArray[np.int64]]:
    """Ascending (step from 0) x objects + object, each once; a step may span batches."""
    first: int | None = None
    used, step = np.zeros(objects, bool), 0  # of the step that may go on
    for rows in trace.rows(_BATCH_ROWS):
        first = int(rows.step[0]) if first is None else first
        keys = _distinct(rows, first, trace.experts_per_layer, objects)
        last = int(rows.step[-1]) - first
        if last != step:
            boundary, ended = np.searchsorted(keys, ((step + 1) * objects, last * objects))
            used[keys[:boundary] % objects] = True
            yield np.flatnonzero(used) + step * objects
            yield keys[boundary:ended]
            keys, step = keys[ended:], last
            used[:] = False
        used[keys % objects] = True
    yield np.flatnonzero(used) + step * objects


def _distinct(rows: TokenRows, first: int, experts: int, objects: int) -> NDArray[np.int64]:
    layer = np.arange(rows.experts.shape[1])[None, :, None] * experts
    keys = (rows.step - first)[:, None, None] * objects + layer + rows.experts.astype(np.int64)
    return np.unique(keys if rows.recorded is None else keys[rows.recorded])


def _fill_next(file: IO[bytes], written: int, objects: int) -> None:
    """Give each access the index of the next one to its object, -1 where there is none."""
    upcoming = np.full(objects, -1, np.int64)
    for start in reversed(range(0, written, _CHUNK)):
        file.seek(start * _ACCESS.itemsize)
        size = min(_CHUNK, written - start) * _ACCESS.itemsize
        accesses = np.frombuffer(bytearray(file.read(size)), _ACCESS)
        here = accesses["object"].astype(np.int64)
        order = np.argsort(here, kind="stable")
        ordered = here[order]
        last = np.append(ordered[1:] != ordered[:-1], True)
        following = np.empty(len(order), np.int64)
        following[order[~last]] = start + order[1:][~last[:-1]]
        following[order[last]] = upcoming[ordered[last]]
        first = np.append(True, ordered[1:] != ordered[:-1])
        upcoming[ordered[first]] = start + order[first]
        accesses["next"] = following
        file.seek(start * _ACCESS.itemsize)
        file.write(accesses.tobytes())
