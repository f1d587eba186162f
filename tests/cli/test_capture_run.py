"""The options that bound a recording, as they are typed, and what is said of it afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.capture.transformers.script.capture import RecordedModel, ScriptResult
from moeprof.cli.capture_run import _text
from moeprof.cli.limits import left_behind, parse_bytes, parse_duration
from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import Request, TraceWriter, synthesize_rows


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GiB", 10 << 30), ("1.5 mib", 3 << 19), ("500MB", 500_000_000), ("4096", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--max-size") == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1.5", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--duration") == seconds


@pytest.mark.parametrize("text", ["", "x", "-1s", "0", "1..2s", "10 weeks", "GiB", "nan", "1e3"])
def test_what_is_neither_is_named_with_its_option(text: str) -> None:
    for parse, option in ((parse_bytes, "--max-size"), (parse_duration, "--duration")):
        with pytest.raises(InputError, match=f"^{option} .*such as"):
            parse(text, option)


def test_no_option_is_no_limit() -> None:
    assert parse_bytes(None, "--max-size") is None and parse_duration(None, "--duration") is None


def test_the_summary_says_what_was_left_behind() -> None:
    trace = RecordedModel("t.moetrace", "m", 3, 900, 1, 600, 300, 8100, 50, 0.125)
    text = _text(ScriptResult(0, 900, 1, 600, 300, [trace]))
    assert all(line.startswith("moeprof: ") for line in text.splitlines())
    for words in ("900 tokens of 3 requests", "50 older", "8,100 tokens of other", "12.5%"):
        assert words in text
    assert left_behind(0, 0, None) == []


def test_info_states_the_error_of_sampling(
    model: MoEModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, requests = synthesize_rows(model, 600, requests=6)
    sampling = {"rate": 0.5, "seed": 3}
    with TraceWriter(tmp_path / "t.moetrace", model, sampling=sampling) as writer:
        writer.write(rows)
        for request in requests:
            writer.put_request(Request(request.index))
        writer.leave_out(500, 5)
    assert main(["info", str(tmp_path / "t.moetrace"), "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)["result"]["sampling"]
    assert sampling.items() <= stated.items() and 0 < stated["share_error"] < 1
    assert main(["info", str(tmp_path / "t.moetrace")]) == 0
    assert "standard error" in " ".join(capsys.readouterr().out.split())
