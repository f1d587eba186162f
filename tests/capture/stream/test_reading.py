"""Bytes past the system's cache, and the ring of memory that they wait in."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.capture.stream.reading import ALIGNMENT, fresh_bytes, padded, read_into
from moeprof.capture.stream.staging import Staging
from moeprof.errors import InputError


@pytest.mark.parametrize("start", [0, 24, 4095, 4096, 5001])
@pytest.mark.parametrize("nbytes", [1, 4096, 100_000])
@pytest.mark.parametrize("direct", [True, False])
def test_every_byte_of_the_file_arrives(tmp_path, monkeypatch, start, nbytes, direct):
    if not direct:
        monkeypatch.delattr("os.O_DIRECT", raising=False)
    content = np.random.default_rng(0).integers(256, size=start + nbytes + 3, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    memory = fresh_bytes(padded(start, nbytes))
    found = read_into(memory, tmp_path / "file", start, nbytes)
    assert np.shares_memory(found, memory) and (found == content[start : start + nbytes]).all()


def test_a_file_that_is_cut_or_gone_is_named(tmp_path):
    path, memory = tmp_path / "file", fresh_bytes(3 * ALIGNMENT)
    path.write_bytes(bytes(5000))
    with pytest.raises(InputError, match="file: is cut off"):
        read_into(memory, path, 1, 5000)
    with pytest.raises(InputError, match="none: cannot be read"):
        read_into(memory, tmp_path / "none", 0, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(1, 12), st.integers(0, 99))))
def test_no_byte_of_the_ring_is_given_out_twice(size, wishes):
    ring, held = Staging(size), []
    for wanted, which in wishes:
        wanted = min(wanted, size)
        while ring._find(wanted) is None:  # it would wait: give one back, whichever
            assert held
            ring.give_back(held.pop(which % len(held)))
        room = ring.take(wanted)
        assert room is not None and len(room.memory) == wanted
        assert all(room.stop <= other.start or other.stop <= room.start for other in held)
        held.append(room)


def test_who_waits_for_room_gets_it_or_is_told_that_there_is_none():
    ring, answers = Staging(10), queue.Queue()
    first = ring.take(8)
    waits = threading.Thread(target=lambda: [answers.put(ring.take(8)) for _ in range(2)])
    waits.start()
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.05)
    ring.give_back(first)
    assert answers.get(timeout=10) is not None
    ring.close()
    assert answers.get(timeout=10) is None
