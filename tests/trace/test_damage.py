"""What a crash, a cut or a flipped bit leaves readable, and that nothing of it passes unsaid."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import (
    TelemetrySample,
    TraceWriter,
    open_trace,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.schema import Manifest
from moeprof.trace.streams import StreamWriter, read_batches
from tests.conftest import save, small_config
from tests.killing import progress_until_killed
from tests.trace.test_store import part


@pytest.fixture
def crashed(tmp_path: Path, model: MoEModel) -> tuple[Path, list[int]]:
    """A trace of one unfinished segment with ten batches of 20 rows, as a crash leaves it.

    And the size of the segment after each batch.
    """
    rows, _ = synthesize_rows(model, 200, seed=5)
    writer = TraceWriter(tmp_path / "run.moetrace", model)
    ends = []
    for start in range(0, 200, 20):
        writer.write(part(rows, start, start + 20))
        writer.flush()
        ends.append((writer.path / "segments" / "000000.arrows").stat().st_size)
    shutil.copytree(writer.path, tmp_path / "cut.moetrace")
    writer.close()
    return tmp_path / "cut.moetrace", ends


def test_cut_at_any_byte_it_opens_as_a_prefix(crashed: tuple[Path, list[int]]) -> None:
    batches, ends = crashed
    whole = open_trace(batches)
    experts = np.array(whole.experts(2))
    segment = batches / "segments" / "000000.arrows"
    data = segment.read_bytes()
    cuts = random.Random(7).sample(range(len(data)), 300)
    assert len(data) == ends[-1]
    for cut in [0, 1, len(data) - 1, *ends, *cuts]:
        segment.unlink()  # a new inode: the old one is still mapped
        segment.write_bytes(data[:cut])
        trace = open_trace(batches)
        assert trace.tokens == 20 * sum(end <= cut for end in ends)
        np.testing.assert_array_equal(trace.experts(2), experts[: trace.tokens])
        assert "a prefix of" in trace.problems[0]


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.95])
def test_a_closed_segment_cut_short_is_named(saved: Callable[..., Path], cut: float) -> None:
    path = saved(600)
    segment = path / "segments" / "000000.arrows"
    segment.write_bytes(segment.read_bytes()[: int(segment.stat().st_size * cut)])
    problems = open_trace(path).problems
    assert len(problems) == 1
    assert problems[0].startswith("segments/000000.arrows: 0 of 600 rows can be read")


def test_a_corrupted_segment_is_named_and_the_others_read(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 300)
    with TraceWriter(tmp_path / "t", model, segment_bytes=1) as writer:
        for start in (0, 100, 200):
            writer.write(part(rows, start, start + 100))
            writer.flush()
    broken = tmp_path / "t" / "segments" / "000001.arrows"
    broken.write_bytes(b"\xff" * 64 + broken.read_bytes()[64:])
    trace = open_trace(tmp_path / "t")
    assert trace.tokens == 200
    assert [p.split(":")[0] for p in trace.problems] == ["segments/000001.arrows"]
    np.testing.assert_array_equal(trace.experts(1)[100:], rows.experts[200:, 0])
    broken.unlink()
    assert open_trace(tmp_path / "t").problems == ("segments/000001.arrows: is missing",)


def test_flipped_bits_never_pass_validation(saved: Callable[..., Path]) -> None:
    path = saved(200)
    segment = path / "segments" / "000000.arrows"
    data = bytearray(segment.read_bytes())
    draw = random.Random(11)
    for _ in range(150):
        place = draw.randrange(len(data))
        broken = bytearray(data)
        broken[place] ^= 1 << draw.randrange(8)
        segment.unlink()
        segment.write_bytes(broken)
        assert any("segments/000000.arrows" in p for p in validate_trace(path).problems)


def test_impossible_ids_and_gaps_are_found(tmp_path: Path) -> None:
    large = MoEModel.from_config(small_config(experts=200))
    rows, _ = synthesize_rows(MoEModel.from_config(small_config()), 50, requests=1)
    rows.experts[7, 0] = [99, 1, 2]
    rows.experts[9, 1] = [4, 4, 5]
    rows.position[20:] += 3
    with TraceWriter(tmp_path / "t", large) as writer:
        writer.write(rows)
    edit_manifest(tmp_path / "t", experts=16)
    problems = validate_trace(tmp_path / "t").problems
    assert problems[0].startswith("layer 1, row 7: an id is not below 16 experts")
    assert problems[1].startswith("layer 2, row 9: an id stands twice")
    assert problems[2].startswith("request 0: position 19 is followed by 23")
    assert len(problems) == 3


def edit_manifest(path: Path, **values: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | values))


def rewrite(path: Path, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another writer's `file`: closed and checksummed, with what `change` makes of its rows."""
    table = change(pa.Table.from_batches(read_batches(path / file)[0]))
    (path / file).unlink()
    stream = StreamWriter(path / file, table.schema)
    for batch in table.to_batches():
        stream.append(batch)
    stream.close()
    manifest = Manifest.load(path)
    others = [stored for stored in manifest.files if stored.file != file]
    manifest.model_copy(update={"files": [*others, stream.stored(path)]}).save(path)


@pytest.mark.parametrize("file", ["segments/000000.arrows", "requests.arrows", "telemetry.arrows"])
def test_columns_of_a_later_moeprof_are_passed_over(
    tmp_path: Path, model: MoEModel, file: str
) -> None:
    rows, requests = synthesize_rows(model, 100)
    path = save(tmp_path / "t", model, rows, requests)
    with TraceWriter(path, model, force=True) as writer:
        writer.write(rows)
        writer.put_request(requests[0])
        writer.put_telemetry(TelemetrySample(0.5, 0))
    before = open_trace(path)
    rewrite(path, file, lambda t: t.add_column(0, "later", pa.array(["x"] * len(t))))
    trace = open_trace(path)
    assert validate_trace(path).problems == []
    np.testing.assert_array_equal(trace.experts(1), before.experts(1))
    assert (trace.requests, trace.telemetry) == (before.requests, before.telemetry)
    rewrite(path, file, lambda t: t.drop_columns(t.column_names[1]))
    assert f"{file}: its columns are not those of this trace" in open_trace(path).problems


def test_a_column_of_another_type_is_no_column_of_this_trace(saved: Callable[..., Path]) -> None:
    path = saved(50)
    steps = pa.array(range(50), pa.int32())
    rewrite(path, "segments/000000.arrows", lambda t: t.set_column(0, "step", steps))
    assert "its columns are not those" in open_trace(path).problems[0]


def test_a_step_that_decreases_is_found(saved: Callable[..., Path]) -> None:
    path = saved(50, requests=50)
    steps = [*range(30), 20, *range(31, 50)]
    column = pa.field("step", pa.int64(), nullable=False)
    rewrite(
        path,
        "segments/000000.arrows",
        lambda t: t.set_column(0, column, pa.array(steps, pa.int64())),
    )
    assert validate_trace(path).problems == ["row 30: step 20 follows step 29"]


def test_rows_that_no_file_holds_are_missed(saved: Callable[..., Path]) -> None:
    path = saved(50)
    edit_manifest(path, tokens=51)
    sentence = "manifest.json: 51 tokens were written, 50 can be read"
    assert validate_trace(path).problems == [sentence]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [1, 2, 2]}, "layers: .* each once"),
        ({"layers": []}, "layers: .* at least one"),
        ({"top_k": 0}, "top_k: .* greater than or equal to 1"),
        ({"experts": 0}, "experts: .* greater than or equal to 1"),
        ({"experts": 70_000}, "experts: .* less than or equal to 65536"),
        ({"files": [{"file": "../../etc/passwd.arrows"}]}, "files.0.file: .* is not an .arrows"),
        ({"files": [{"file": "/etc/passwd.arrows"}]}, "files.0.file: .* is not an .arrows"),
        ({"files": [{"file": "segments"}]}, "files.0.file: .* is not an .arrows"),
        ({"model": {}}, "model"),
    ],
)
def test_manifest_values_that_cannot_be_are_one_clear_line(
    saved: Callable[..., Path], values: dict[str, object], message: str
) -> None:
    path = saved(20)
    for file in values.get("files", []):  # type: ignore[attr-defined]
        file |= {"rows": 1, "bytes": 1, "crc32": "00000000"}
    edit_manifest(path, **values)
    with pytest.raises(InputError, match=message) as caught:
        validate_trace(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": 4}, "an id is not below 4 experts"),
        ({"experts": 300}, "its columns are not those"),
        ({"top_k": 2}, "its columns are not those"),
        ({"layers": [1, 2, 7]}, "its columns are not those"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_a_problem(
    saved: Callable[..., Path], values: dict[str, object], message: str
) -> None:
    path = saved(20)
    edit_manifest(path, **values)
    assert any(message in problem for problem in validate_trace(path).problems)


def test_a_folder_in_the_place_of_a_file_is_a_problem(saved: Callable[..., Path]) -> None:
    path = saved(20)
    (path / "segments" / "000000.arrows").unlink()
    (path / "segments" / "000000.arrows").mkdir()
    assert "segments/000000.arrows: is missing" in validate_trace(path).problems


def test_a_sound_trace_has_no_problems(saved: Callable[..., Path]) -> None:
    assert validate_trace(saved(600)).problems == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "valid dictionary"),
        ('{"schema": "moeprof.trace/1"}', "Field required"),
    ],
)
def test_a_bad_manifest_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TraceError, match=message) as caught:
        open_trace(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such trace"):
        open_trace(tmp_path / "nowhere")
    with pytest.raises(TraceError, match=r"has no manifest\.json"):
        open_trace(tmp_path)


RECORDER = """
import json, sys, time
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter, synthesize_rows
from tests.trace.test_store import part
model = MoEModel.from_config(json.loads(sys.argv[2]))
rows, _ = synthesize_rows(model, 200_000, requests=1)
writer = TraceWriter(sys.argv[1], model)
for token in range(200_000):
    writer.write(part(rows, token, token + 1))
    writer.tick()
    print(token, time.monotonic(), flush=True)
    time.sleep(0.001)
"""


def test_kill_9_loses_at_most_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "run.moetrace"
    config = json.dumps(small_config())
    due, _ = progress_until_killed(RECORDER, str(path), config, seconds=2.2)
    trace = open_trace(path)
    assert due > 100, "the recorder hardly ran"
    assert trace.tokens > due
    assert "its writer did not close it" in trace.problems[0]


def test_a_manifest_that_would_never_end_is_refused(saved: Callable[..., Path]) -> None:
    path = saved(10)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(TraceError, match=r"manifest\.json: is not a file"):
        open_trace(path)
