"""Names of requests: kept as asked for, carried or removed, and no matter to traces without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.report.text.trace import trace_info_text
from moeprof.trace import (
    Request,
    TraceWriter,
    describe_trace,
    merge_traces,
    migrate_trace,
    open_trace,
    redact_trace,
    slice_trace,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.formats.exporting import export_trace
from tests.trace.test_damage import edit_manifest

SECRET = "chatcmpl-of-someone"


def named(path: Path, model: MoEModel, kind: str = "plain", name: str | None = SECRET) -> Path:
    """A trace of two requests, the first of which has a name."""
    rows, requests = synthesize_rows(model, 60, requests=2)
    with TraceWriter(path, model, request_names=kind, clock_base=0.0) as out:
        out.write(rows)
        out.put_request(Request(0, label="a", name=name))
        out.put_request(Request(1, prompt_tokens=requests[1].prompt_tokens))
    return path


def names(path: Path) -> list[str | None]:
    return [request.name for request in open_trace(path).requests]


def stored_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(("kind", "words"), [("plain", "engine's ids"), ("hashed", "hashes of")])
def test_names_come_round(tmp_path: Path, model: MoEModel, kind: str, words: str) -> None:
    path = named(tmp_path / "t", model, kind)
    assert names(path) == [SECRET, None]
    info = validate_trace(path)
    assert (info.problems, info.request_names) == ([], kind)
    assert words in trace_info_text(info)
    slice_trace(path, tmp_path / "s", requests=[0])
    migrate_trace(path, tmp_path / "m")
    assert names(tmp_path / "s") == [SECRET] and names(tmp_path / "m") == [SECRET, None]
    assert describe_trace(open_trace(tmp_path / "s")).request_names == kind


def test_a_trace_without_names_has_no_column_for_them(tmp_path: Path, model: MoEModel) -> None:
    path = named(tmp_path / "t", model, "none", None)
    assert b"name" not in (path / "requests.arrows").read_bytes()
    assert names(path) == [None, None]
    assert "engine's id" not in trace_info_text(validate_trace(path))
    out = TraceWriter(tmp_path / "o", model)
    with pytest.raises(TraceError, match="keeps no names of requests"):
        out.put_request(Request(0, name=SECRET))
    out.close()


def test_a_manifest_of_before_still_opens(tmp_path: Path, model: MoEModel) -> None:
    path = named(tmp_path / "t", model, "none", None)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["request_names"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert validate_trace(path).problems == []


def test_a_manifest_that_promises_names_which_are_not_there_is_a_problem(
    tmp_path: Path, model: MoEModel
) -> None:
    path = named(tmp_path / "t", model, "none", None)
    edit_manifest(path, request_names="hashed")
    sentence = "requests.arrows: its columns are not those of this trace"
    assert sentence in validate_trace(path).problems
    edit_manifest(path, request_names="both")
    with pytest.raises(TraceError, match="request_names"):
        open_trace(path)


def test_redacted_and_exported_are_without_names(tmp_path: Path, model: MoEModel) -> None:
    path = named(tmp_path / "t", model)
    assert SECRET.encode() in stored_bytes(path)
    redact_trace(path, tmp_path / "r")
    assert SECRET.encode() not in stored_bytes(tmp_path / "r")
    assert open_trace(tmp_path / "r").manifest.request_names == "none"
    for form in ("jsonl", "npz", "csv", "llmservingsim"):
        export_trace(open_trace(path), tmp_path / form, format=form)
        assert SECRET.encode() not in (tmp_path / form).read_bytes(), form


@pytest.mark.parametrize(
    ("kinds", "merged"),
    [
        (["none", "hashed"], "hashed"),
        (["plain", "hashed"], "plain"),
        (["none", "none"], "none"),
    ],
)
def test_merged_traces_tell_what_the_one_that_tells_most_told(
    tmp_path: Path, model: MoEModel, kinds: list[str], merged: str
) -> None:
    told = [None if kind == "none" else f"{kind}-id" for kind in kinds]
    paths = [
        named(tmp_path / str(i), model, kind, name)
        for i, (kind, name) in enumerate(zip(kinds, told, strict=True))
    ]
    merge_traces(paths, tmp_path / "all")
    assert names(tmp_path / "all") == [told[0], None, told[1], None]
    assert open_trace(tmp_path / "all").manifest.request_names == merged


def test_another_kind_of_names_is_refused(tmp_path: Path, model: MoEModel) -> None:
    with pytest.raises(InputError, match="request_names 'md5' is not one of none, hashed, plain"):
        TraceWriter(tmp_path / "t", model, request_names="md5")
    assert not (tmp_path / "t").exists()
