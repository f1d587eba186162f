"""What a crash, a cut or a flipped bit leaves readable, and that nothing of it passes unsaid."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moeprof.errors import TraceError
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter, open_trace, synthesize_rows, validate_trace
from tests.conftest import small_config
from tests.killing import progress_until_killed
from tests.trace.test_store import part


@pytest.fixture
def batches(tmp_path: Path, model: MoEModel) -> Path:
    """A trace of one unfinished segment with ten batches of 20 rows, as a crash leaves it."""
    rows, _ = synthesize_rows(model, 200, seed=5)
    writer = TraceWriter(tmp_path / "run.moetrace", model)
    for start in range(0, 200, 20):
        writer.write(part(rows, start, start + 20))
        writer.flush()
    shutil.copytree(writer.path, tmp_path / "cut.moetrace")
    writer.close()
    return tmp_path / "cut.moetrace"


def test_cut_at_any_byte_it_opens_as_a_prefix(batches: Path, model: MoEModel) -> None:
    whole = open_trace(batches)
    experts = np.array(whole.experts(2))
    segment = batches / "segments" / "000000.arrows"
    data = segment.read_bytes()
    cuts = random.Random(7).sample(range(len(data)), 300)
    for cut in [0, 1, len(data) - 1, *cuts]:
        segment.unlink()  # a new inode: the old one is still mapped
        segment.write_bytes(data[:cut])
        trace = open_trace(batches)
        assert trace.tokens % 20 == 0
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


def test_impossible_ids_and_gaps_are_found(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 50, requests=1)
    rows.experts[7, 0] = [99, 1, 2]
    rows.experts[9, 1] = [4, 4, 5]
    rows.position[20:] += 3
    with TraceWriter(tmp_path / "t", model) as writer:
        writer.write(rows)
    problems = validate_trace(tmp_path / "t").problems
    assert problems[0].startswith("layer 1, row 7: an id is not below 16 experts")
    assert problems[1].startswith("layer 2, row 9: an id stands twice")
    assert problems[2].startswith("request 0: position 19 is followed by 23")
    assert len(problems) == 3


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
