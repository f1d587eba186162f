"""The command: what it prints once, in lines and on a terminal, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moeprof import MoEModel, TraceWriter
from moeprof.cli.main import main
from moeprof.live import LiveFigures, RankStatus, Watch
from moeprof.live.figures import LayerFigures
from moeprof.report.text.live import live_line, live_text, strip
from tests.conftest import small_config
from tests.live.rows import ScriptedSource, engine_rows, part, steps_of
from tests.live.server import FakeRank, serving

MODEL = MoEModel.from_config(small_config())
ROWS = engine_rows(MODEL, [4] * 30)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures() -> LiveFigures:
    return Watch(ScriptedSource(MODEL, [steps_of(ROWS)]), slots=[4, 8], steps=100).poll()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    with TraceWriter(tmp_path / "run.moetrace", MODEL) as writer:
        writer.write(ROWS)
    return writer.path


def test_once_prints_figures_and_what_to_try_next(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["live", str(trace), "--once", "--slots", "4,8"]) == 0
    shown = capsys.readouterr().out
    for words in ("ENDED", "120 tokens", "last 30 steps", "LRU hits", "8 slots", "hottest"):
        assert words in shown
    assert f"moeprof report {trace}" in shown and "\x1b" not in shown


def test_json_is_one_document(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", str(trace), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "moeprof.live/1"
    assert document["inputs"][0]["path"] == str(trace)
    result = document["result"]
    assert result["state"] == "ended" and result["window_tokens"] == 120
    assert [row["slots"] for row in result["lru"]] == [2, 4, 8]  # of 16 experts


def test_a_server_is_shown_once_with_rates(capsys: pytest.CaptureFixture[str]) -> None:
    with serving([FakeRank(MODEL, ROWS)]) as server:
        assert main(["live", server.url, "--json", "--interval", "0.1s", "--window", "60s"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["state"] == "recording" and result["tokens_per_s"] == 0.0
    assert result["source"] == server.url


def test_where_nobody_looks_each_interval_is_a_line(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["live", str(trace)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"\d\d:\d\d:\d\d ended, 120 tokens, imbalance .*LRU 8: .*has ended$", first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "live what?"),
        (["nowhere.moetrace"], "no such trace; live watches a folder"),
        (["http://127.0.0.1:1"], "cannot connect"),
        (["ftp://x"], "no such trace"),
        (["TRACE", "--window", "x"], "--window"),
        (["TRACE", "--slots", "a"], "--slots"),
        (["TRACE", "--interval", "0"], "--interval"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], words: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["live", *(str(trace) if a == "TRACE" else a for a in arguments)]) in (1, 2)
    complaint = capsys.readouterr().err
    assert words in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (60, 16)])
def test_the_view_fits_its_terminal(figures: LiveFigures, width: int, height: int) -> None:
    layers = [LayerFigures(n, 1 + n % 7, 3.0) for n in range(3, 60)]
    ranks = [RankStatus(f"dp{n} pp0 tp0", True, True, 10, 0, 5) for n in range(64)]
    crowded = replace(
        figures,
        per_layer=layers,
        ranks=ranks,
        source="http://" + "x" * 200,
        words="\x1b[31m" + "y" * 300,
        dropped={"a reason " + "z" * 100: 10**12},
        tokens=10**13,
    )
    for shown in (figures, crowded, _some()):
        lines = live_text(shown, width, height).splitlines()
        assert max(map(len, lines)) <= width and len(lines) <= height
        assert "\x1b" not in "".join(lines)


def test_the_strip_is_tallest_where_load_is_least_even() -> None:
    layers = [LayerFigures(n, ratio, None) for n, ratio in enumerate([1.0, 1.5, 3.0, 2.0], 3)]
    assert strip(layers, 60) == "▁▃█▅  layers 3 to 6"
    assert strip(layers, 17) == "▃█  layers 3 to 6"  # of two layers the taller
    assert strip(layers[:1], 60).startswith("▁")
    assert "dropped 7" in live_line(replace(_some(), dropped={"x": 7}))


def _some() -> LiveFigures:
    return Watch(ScriptedSource(MODEL, []), steps=1).poll()


def started(*arguments: str, terminal: int | None = None) -> subprocess.Popen[bytes]:
    """The command in a process of its own, on `terminal` if given."""
    command = [sys.executable, "-m", "moeprof", "live", *arguments]
    out = subprocess.PIPE if terminal is None else terminal
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    return subprocess.Popen(command, stdin=out if terminal else None, stdout=out,
                            stderr=subprocess.STDOUT, env=environment, cwd=ROOT)  # fmt: skip


def test_ctrl_c_ends_lines_with_exit_code_0(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run.moetrace", MODEL) as writer:
        writer.write(part(ROWS, ROWS.step < 9))
        writer.flush()
        process = started(str(writer.path), "--interval", "0.2s")
        assert process.stdout is not None
        with process.stdout as printed:
            assert b"recording, 36 tokens" in printed.readline()
            process.send_signal(signal.SIGINT)
            rest = printed.read().decode()
        assert process.wait(10) == 0
    assert "Next:  moeprof info" in rest and "Traceback" not in rest


def test_a_terminal_is_drawn_anew_and_given_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with TraceWriter(tmp_path / "run.moetrace", MODEL) as writer:
        writer.write(part(ROWS, ROWS.step < 9))
        writer.flush()
        process = started(str(writer.path), "--interval", "0.2s", terminal=theirs)
        os.close(theirs)
        seen = read_until(ours, b"RECORDING")
        assert b"\x1b[?1049h" in seen  # the other screen
        writer.write(part(ROWS, ROWS.step >= 9))
        writer.close()
        seen = read_until(ours, b"Next:")
    assert process.wait(10) == 0
    os.close(ours)
    assert b"\x1b[?1049l" in seen and b"120 tokens" in seen


def read_until(terminal: int, words: bytes) -> bytes:
    """What is shown up to `words`."""
    seen, end = b"", time.monotonic() + 30
    while words not in seen and time.monotonic() < end:
        seen += os.read(terminal, 65536)
    assert words in seen
    return seen
