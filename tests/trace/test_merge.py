"""Recordings of one model become one, without a row, a request or a count getting lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import InputError, MoeprofError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import (
    Request,
    TelemetrySample,
    TokenRows,
    Trace,
    TraceWriter,
    merge_traces,
    open_trace,
    synthesize_rows,
    validate_trace,
    write_counts,
)
from moeprof.trace.columns import concat_rows
from moeprof.trace.streams import StreamWriter
from tests.conftest import save, small_config
from tests.trace.test_damage import edit_manifest
from tests.trace.test_failing_writes import refuse
from tests.trace.test_limits import with_extras
from tests.trace.test_store import assert_same, part


def rank(path: Path, model: MoEModel, seed: int, tokens: int = 300, **options: Any) -> Path:
    """One source: synthetic rows of four requests, written in parts of 70."""
    rows, requests = synthesize_rows(model, tokens, seed=seed)
    with TraceWriter(path, model, clock_base=100.0, **options) as out:
        for start in range(0, tokens, 70):
            out.write(part(rows, start, start + 70))
            out.flush()
        for request in requests:
            out.put_request(request)
    return path


def digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(bytes(f) + f.read_bytes() for f in files)).hexdigest()


def of_request(trace: Trace, index: int) -> list[list[Any]]:
    """Everything that is recorded of one request but for its number and its steps' offset."""
    mask = trace.request == index
    step = trace.step[mask]
    arrays = [step - step[0], trace.position[mask], trace.phase[mask]]
    return [a.tolist() for a in arrays] + [trace.experts(n)[mask].tolist() for n in trace.layers]


def test_every_request_is_as_it_was(tmp_path: Path, model: MoEModel) -> None:
    paths = [rank(tmp_path / name, model, seed) for seed, name in enumerate("abc")]
    before = [digest(path) for path in paths]
    result = merge_traces(paths, tmp_path / "all")
    assert [digest(path) for path in paths] == before, "the sources stay as they are"
    merged, sources = open_trace(tmp_path / "all"), [open_trace(path) for path in paths]
    assert validate_trace(tmp_path / "all").problems == result.problems == []
    assert (result.tokens, result.requests, result.complete) == (900, 12, True)
    for number, source in enumerate(sources):
        for request in source.requests:
            index = 4 * number + request.index
            assert of_request(merged, index) == of_request(source, request.index)
            assert vars(merged.requests[index]) == {**vars(request), "index": index}
    steps = [merged.step[merged.request // 4 == number] for number in range(3)]
    assert steps[0].max() + 1 == steps[1].min() and steps[1].max() + 1 == steps[2].min()


@settings(max_examples=40)  # each writes files
@given(
    tokens=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    nulls=st.booleans(),
    seed=st.integers(0, 9),
)
def test_rows_of_every_kind_come_through_in_order(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], nulls: bool, seed: int
) -> None:
    model = MoEModel.from_config(small_config())
    folder = tmp_path_factory.mktemp("t")
    parts = []
    for number, count in enumerate(tokens):
        rows, _ = synthesize_rows(model, max(count, 1), seed=seed + number, requests=1)
        shape = rows.experts.shape
        seen = np.random.default_rng(seed).random(shape[:2]) < 0.6 if nulls else None
        rows = with_extras(part(rows, 0, count), None if seen is None else seen[:count])
        rows = TokenRows(
            **{
                **vars(rows),
                "weights": np.random.default_rng(0).random(rows.experts.shape).astype(np.float16),
                "token_id": np.arange(count, dtype=np.int32),
            }
        )
        parts.append(rows)
        options = {"weights": True, "token_ids": True, "margins": True, "next_layer": True}
        with TraceWriter(folder / str(number), model, **options) as out:
            out.write(rows)
            out.put_request(Request(0))
    merge_traces([folder / str(n) for n in range(len(tokens))], folder / "all")
    trace = open_trace(folder / "all")
    whole = concat_rows(parts)
    number = np.repeat(np.arange(len(tokens)), tokens)
    shifted = TokenRows(**{**vars(whole), "request": number, "step": trace.step})
    assert_same(trace, shifted)
    assert (np.diff(trace.step) >= 0).all()
    for layer in (1, 2, 3):
        mask = trace.recorded(layer)
        np.testing.assert_array_equal(trace.margins(layer), whole.margins[mask, layer - 1])  # type: ignore[index]
    np.testing.assert_array_equal(trace.token_id, whole.token_id)
    assert len(trace.requests) == len(tokens)
    assert validate_trace(folder / "all").problems == []


def test_times_count_from_the_earliest_clock(tmp_path: Path, model: MoEModel) -> None:
    for name, base in (("a", 1000.0), ("b", 900.0)):
        with TraceWriter(tmp_path / name, model, clock_base=base) as out:
            out.put_request(Request(0, arrival_s=5.0))
            for second in (2.0, 300.0):
                out.put_telemetry(TelemetrySample(second, 0, power_w=base))
    merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    trace = open_trace(tmp_path / "all")
    assert trace.manifest.clock_base == 900.0
    assert [request.arrival_s for request in trace.requests] == [105.0, 5.0]
    found = [(sample.time_s, sample.power_w) for sample in trace.telemetry]
    assert found == [(2.0, 900.0), (102.0, 1000.0), (300.0, 900.0), (400.0, 1000.0)]


def test_counts_of_what_is_missing_add_up(tmp_path: Path, model: MoEModel) -> None:
    for name in "ab":
        sampling = {"rate": 0.5, "seed": ord(name)}
        with TraceWriter(tmp_path / name, model, sampling=sampling) as out:
            out.drop(3, "behind")
            out.drop(1, f"only {name}")
            out.leave_out(10, requests=2)
            out.manifest.rotated_tokens = 7
    result = merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    info = validate_trace(tmp_path / "all")
    assert info.dropped == result.dropped == {"behind": 6, "only a": 1, "only b": 1}
    assert (info.tokens_sampled_out, info.requests_seen, info.rotated_tokens) == (20, 4, 14)
    assert info.sampling == {"rate": 0.5, "seed": ord("a")}


def test_engines_and_ranks_that_differ_are_said_to(tmp_path: Path, model: MoEModel) -> None:
    TraceWriter(tmp_path / "a", model, engine="vllm", rank_ordered=True).close()
    TraceWriter(tmp_path / "b", model, engine="sglang", rank_ordered=False).close()
    merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    manifest = open_trace(tmp_path / "all").manifest
    assert (manifest.engine, manifest.rank_ordered) == ("vllm, sglang", None)


def test_what_a_crash_left_is_merged_and_said_to_be_cut(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 200, requests=1)
    out = TraceWriter(tmp_path / "open", model)
    out.write(part(rows, 0, 120))
    out.flush()
    shutil.copytree(tmp_path / "open", tmp_path / "cut")
    out.close()
    whole = save(tmp_path / "whole", model, *synthesize_rows(model, 50))
    result = merge_traces([tmp_path / "cut", whole], tmp_path / "all")
    assert result.tokens == open_trace(tmp_path / "all").tokens == 170
    assert not result.complete
    assert (
        result.problems[0] == f"{tmp_path / 'cut'}: was cut off, what of it can be read is merged"
    )
    assert "its writer did not close it" in result.problems[1]
    sentence = "manifest.json: the recording was cut off before its writer closed it"
    assert validate_trace(tmp_path / "all").problems == [sentence]


def test_rows_that_can_no_longer_be_read_count_as_dropped(tmp_path: Path, model: MoEModel) -> None:
    path = rank(tmp_path / "a", model, 0, segment_bytes=1)
    (path / "segments" / "000001.arrows").unlink()
    result = merge_traces([path], tmp_path / "all")
    assert result.dropped == {"unreadable in a merged trace": 70}
    assert (result.tokens, result.problems) == (
        230,
        [f"{path}: segments/000001.arrows: is missing"],
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layers": [1, 2, 5]}, r"its list of layers is \[1, 2, 5\], not \[1, 2, 3\]"),
        ({"top_k": 2}, "top_k is 2, not 3"),
        ({"weights": True}, "'weights recorded' is True, not False"),
        ({"sampling": {"rate": 0.5, "seed": 0}}, "its sampling rate is 0.5, not None"),
    ],
)
def test_traces_that_differ_are_refused_in_one_sentence(
    tmp_path: Path, model: MoEModel, values: dict[str, Any], sentence: str
) -> None:
    paths = [save(tmp_path / name, model, *synthesize_rows(model, 9)) for name in "ab"]
    edit_manifest(paths[1], **values)
    with pytest.raises(InputError, match=f"/b cannot be merged with .*/a: {sentence}$"):
        merge_traces(paths, tmp_path / "all")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_another_model_is_refused(tmp_path: Path, model: MoEModel) -> None:
    other = MoEModel.from_config(small_config(experts=8))
    paths = [rank(tmp_path / "a", model, 0), rank(tmp_path / "b", other, 0)]
    with pytest.raises(InputError, match="its model's experts is 8, not 16"):
        merge_traces(paths, tmp_path / "all")


def test_what_cannot_be_merged_is_one_line(tmp_path: Path, model: MoEModel) -> None:
    path = rank(tmp_path / "a", model, 0)
    write_counts(tmp_path / "counts", model, np.ones((1, 3, 16), np.int64))
    with pytest.raises(InputError, match="at least one trace"):
        merge_traces([], tmp_path / "all")
    with pytest.raises(TraceError, match="no such trace"):
        merge_traces([path, tmp_path / "nowhere"], tmp_path / "all")
    for inside in (tmp_path / "x" / ".." / "a", path / "deeper"):
        with pytest.raises(InputError, match="what is merged stays as it is"):
            merge_traces([path], inside, force=True)
    with pytest.raises(InputError, match="counts only"):
        merge_traces([tmp_path / "counts"], tmp_path / "all")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "counts"]


def test_an_existing_trace_is_replaced_only_when_forced(tmp_path: Path, model: MoEModel) -> None:
    paths = [rank(tmp_path / name, model, 0) for name in "ab"]
    with pytest.raises(TraceError, match="will not be overwritten without --force"):
        merge_traces(paths[:1], paths[1])
    merge_traces([paths[0], paths[0]], paths[1], force=True)
    assert open_trace(paths[1]).tokens == 600
    (tmp_path / "precious").mkdir()
    with pytest.raises(TraceError, match="replaces only traces"):
        merge_traces(paths, tmp_path / "precious", force=True)


def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [rank(tmp_path / name, model, 0) for name in "ab"]
    before = digest(paths[1])
    monkeypatch.setattr(StreamWriter, "append", refuse)
    with pytest.raises(MoeprofError, match=r"/b: No space left on device$"):
        merge_traces(paths[:1], paths[1], force=True)
    assert digest(paths[1]) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


KILLED = """
import os, signal, sys
from moeprof.trace import TraceWriter, merge_traces
write, rows = TraceWriter.write, [0]
def dying(self, part):
    rows[0] += 1
    if rows[0] == 3:
        self.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, part)
TraceWriter.write = dying
merge_traces(sys.argv[2:], sys.argv[1])
"""


def test_a_killed_merge_leaves_no_trace_and_the_next_one_is_whole(
    tmp_path: Path, model: MoEModel
) -> None:
    paths = [rank(tmp_path / name, model, 0) for name in "abcd"]
    out = tmp_path / "all"
    done = subprocess.run([sys.executable, "-c", KILLED, out, *paths], capture_output=True)
    assert done.returncode == -9 and not out.exists()
    assert merge_traces(paths, out).tokens == 1200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "all", "b", "c", "d"]


def test_requests_without_a_description_are_numbered_apart(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 40, requests=2)
    rows.request[:5] = -1
    paths = [save(tmp_path / name, model, rows, []) for name in "ab"]
    merge_traces(paths, tmp_path / "all")
    request = open_trace(tmp_path / "all").request
    assert set(request[:40].tolist()) == {-1, 0, 1} and set(request[40:].tolist()) == {-1, 2, 3}
    rows.request[39] = 2**31 - 1
    paths.append(save(tmp_path / "c", model, rows, []))
    with pytest.raises(InputError, match=r"/c: request 2,147,483,647 is too large"):
        merge_traces(paths, tmp_path / "all", force=True)


def test_the_result_is_json(tmp_path: Path, model: MoEModel) -> None:
    result = merge_traces([rank(tmp_path / "a", model, 0)], tmp_path / "all")
    assert json.loads(json.dumps(result.to_dict()))["tokens"] == 300
