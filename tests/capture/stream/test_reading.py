"""Bytes read in pieces, past the system's cache where that can be."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.capture.stream import reading
from moeprof.capture.stream.reading import fresh_bytes, read_all
from moeprof.errors import InputError


@pytest.mark.parametrize("start", [0, 24, 4096, 5001])
@pytest.mark.parametrize("cached", [False, True])
def test_every_byte_of_the_file_arrives(tmp_path, monkeypatch, start, cached):
    monkeypatch.setattr(reading, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(reading, "DIRECT_BYTES", 50_000)
    path = tmp_path / "file"
    content = np.random.default_rng(0).integers(256, size=1_234_567, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    whole, few = fresh_bytes(len(content) - start), fresh_bytes(7)
    read_all([(path, start, whole), (path, 3, few)], {(path, start)} if cached else ())
    assert (whole == content[start:]).all()
    assert (few == content[3:10]).all()


def test_a_file_that_is_cut_or_gone_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(InputError, match="file: is cut off"):
        read_all([(path, 0, fresh_bytes((2 << 20) + 1))])
    with pytest.raises(InputError, match="none: cannot be read"):
        read_all([(tmp_path / "none", 0, fresh_bytes(1))])
