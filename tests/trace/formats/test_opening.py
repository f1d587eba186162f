"""A foreign file opens like a trace, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.trace import open_trace, validate_trace
from moeprof.trace.formats import import_trace

LINES = "".join(
    json.dumps({"tok": token, "layers": [[token % 5, 5], [1, 2 + token % 4]]}) + "\n"
    for token in range(40)
)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording of another program, and a temporary folder of our own."""
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    file = tmp_path / "routes.jsonl"
    file.write_text(LINES)
    return file


def test_it_is_what_an_import_makes_of_it(foreign: Path, tmp_path: Path) -> None:
    result = import_trace(foreign, tmp_path / "made.moetrace")
    opened, made = open_trace(foreign), open_trace(result.path)
    assert str(opened) == str(foreign)
    assert opened.layers == made.layers and opened.tokens == made.tokens == 40
    for layer in made.layers:
        np.testing.assert_array_equal(opened.experts(layer), made.experts(layer))
    assert opened.notes[0] == f"read as {result.format}"
    assert list(opened.notes[-len(result.notes) :]) == result.notes
    assert not validate_trace(foreign).problems


def test_the_conversion_goes_with_the_trace(foreign: Path, tmp_path: Path) -> None:
    opened = open_trace(foreign)
    assert list((tmp_path / "spare").iterdir())
    del opened
    gc.collect()
    assert not list((tmp_path / "spare").iterdir())


def test_what_is_no_recording_is_refused_and_leaves_nothing(foreign: Path, tmp_path: Path) -> None:
    foreign.write_text("not a recording\n")
    with pytest.raises(InputError, match="not a format that is known"):
        open_trace(foreign)
    assert not list((tmp_path / "spare").iterdir())


def test_commands_take_it_and_say_how_it_was_read(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", str(foreign), "--slots", "2", "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["inputs"][0]["path"] == str(foreign)
    assert document["result"]["tokens"] == 40
    assert "read as tok-layers-jsonl" in shown.err
    assert main(["info", str(foreign)]) == 0
    shown = capsys.readouterr()
    assert "2 MoE layers, top-2 of 6 experts" in shown.out and "read as" in shown.err
