"""Import, export, slice, merge, redact and migrate on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.cli.main import main

Saved = Callable[..., Path]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == f"moeprof.{arguments[0]}/1" and document["inputs"]
    answer: dict[str, Any] = document["result"]
    return answer


def test_there_and_back(capsys: pytest.CaptureFixture[str], saved: Saved, tmp_path: Path) -> None:
    trace, csv, again = saved(), tmp_path / "o.csv", tmp_path / "again"
    assert result(capsys, "export", trace, "--format", "csv", "--output", csv)["rows"] == 1800
    shown = result(capsys, "import", csv, "--output", again, "--experts", 16)
    assert (shown["format"], shown["tokens"], shown["skipped"]) == ("csv", 600, {})
    code, out, _ = run(capsys, "validate", again)
    assert code == 0 and "600" in out
    code, out, _ = run(capsys, "import", csv, "--output", tmp_path / "b")
    assert code == 0 and "highest" in out and "nothing" in out


def test_parts_of_a_trace(capsys: pytest.CaptureFixture[str], saved: Saved, tmp_path: Path) -> None:
    trace = saved()
    options = ("--requests", "0-1,3", "--phase", "decode", "--layers", "1,3", "--steps", "0-9999")
    cut = result(capsys, "slice", trace, "--output", tmp_path / "s", *options)
    assert 0 < cut["tokens"] < 600 and cut["requests"] == 3
    assert result(capsys, "redact", trace, "--output", tmp_path / "r")["tokens"] == 600
    assert result(capsys, "migrate", trace, "--output", tmp_path / "m")["tokens"] == 600
    merged = result(capsys, "merge", trace, tmp_path / "m", "--output", tmp_path / "two")
    assert merged["tokens"] == 1200
    for words in (("slice", trace), ("redact", trace), ("migrate", trace), ("merge", trace)):
        code, out, _ = run(capsys, *words, "--output", tmp_path / f"{words[0]}-text")
        assert code == 0 and "600" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "none.csv", "--output", "x"], "no such file"),
        (["import", "BAD", "--output", "x"], "cannot be read as csv"),
        (["import", "BAD", "--output", "x", "--format", "y"], "is not one of"),
        (["export", "T", "--format", "y", "--output", "x"], "is not one of"),
        (["slice", "T", "--steps", "9-1", "--output", "x"], "--steps '9-1'"),
        (["slice", "T", "--layers", "a", "--output", "x"], "--layers 'a'"),
        (["slice", "T", "--requests", "0-9999999", "--output", "x"], "more than"),
        (["merge", "T", "none", "--output", "x"], "no such trace"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str],
    saved: Saved,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BAD").write_text("layer,e0\n1,x\n")
    trace = str(saved(50))
    code, out, err = run(capsys, *[trace if word == "T" else word for word in words])
    assert code == 2 and out == "" and message in err
    assert err.count("moeprof: ") == 1 and err.splitlines()[-1].startswith("moeprof: ")
    assert not (tmp_path / "x").exists()


def test_notes_name_what_was_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ids = np.argsort(np.random.default_rng(0).random((40, 3, 8)), axis=2)[:, :, :2]
    np.savez(tmp_path / "a.npz", experts=np.concatenate([np.repeat(ids[:1], 300, 0), ids[1:]]))
    code, out, _ = run(capsys, "import", tmp_path / "a.npz", "--output", tmp_path / "t")
    assert code == 0 and "300 x warm-up" in out
