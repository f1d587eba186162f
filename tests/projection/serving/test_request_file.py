from __future__ import annotations

from pathlib import Path

import pytest

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.projection.serving import Request, read_requests
from moeprof.trace import Request as Recorded
from moeprof.trace import synthesize_rows
from tests.conftest import save


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_csv_counts_time_from_its_first_request(tmp_path: Path) -> None:
    text = "arrival_s,input_len,output_len,label\n12.5,100,10,a\n10,200,20,b\n"
    found = read_requests(written(tmp_path, "r.csv", text))
    assert found == [Request(100, 10, 2.5), Request(200, 20, 0.0)]


def test_json_lines_of_mooncake_are_in_milliseconds(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}\n\n'
        '{"timestamp": 3052, "input_length": 7319, "output_length": 490, "cached_len": 512}\n'
    )
    found = read_requests(written(tmp_path, "m.jsonl", text))
    assert found == [Request(6755, 500, 0.0), Request(7319, 490, 3.052, 512)]


def test_without_times_all_arrive_at_once(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    assert read_requests(written(tmp_path, "a.csv", text)) == [Request(374, 44)]


def test_a_recording_gives_its_requests(tmp_path: Path, model: MoEModel) -> None:
    rows, _ = synthesize_rows(model, 60, requests=3)
    known = [Recorded(0, None, 5.0, 40, 8), Recorded(1, None, 7.5, 30, 4), Recorded(2)]
    path = save(tmp_path / "t.moetrace", model, rows, known)
    assert read_requests(path) == [Request(40, 8, 0.0), Request(30, 4, 2.5)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "arrival_s,input_len\n0,5\n", "row 1: no output_len; columns are arrival_s"),
        ("r.csv", "input_len,output_len\n5,x\n", "row 1: output_len is 'x', not a number"),
        ("r.csv", "input_len,output_len\n5,inf\n", "not a finite number"),
        ("r.csv", "input_len,output_len\n5,5\n0,5\n", "row 2: a request of 0"),
        ("r.csv", "arrival_s,input_len,output_len\n-1,5,5\n", "row 1: a request arrives at -1"),
        ("r.csv", "input_len,output_len\n", "holds no requests"),
        ("r.jsonl", "{\n", "row 1: not JSON"),
        ("r.jsonl", "[1]\n", "row 1: not an object"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_requests(written(tmp_path, name, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv"):
        read_requests(tmp_path / "none.csv")
