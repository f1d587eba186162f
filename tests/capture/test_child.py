"""A program under ours: its exit code, its signals, its terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moeprof.capture.child import run_child
from moeprof.errors import InputError

# Starts `sh` on the script in argv[1], says so, and ends with its exit code.
PARENT = """
import os, sys
from moeprof.capture.child import run_child
sys.exit(run_child(["sh", "-c", sys.argv[1]], os.environ))
"""
COUNTING = """
n=0
trap 'n=$((n+1))' INT TERM HUP USR1
echo ready
while [ $n = 0 ]; do sleep 0.02; done
sleep 0.3
exit $((40+n))
"""


def test_the_exit_code_is_the_childs() -> None:
    assert run_child(["sh", "-c", "exit 7"], os.environ) == 7
    assert run_child(["true"], os.environ) == 0
    assert run_child(["sh", "-c", "kill -9 $$"], os.environ) == 128 + 9


def test_what_cannot_start_is_named(tmp_path: Path) -> None:
    for program in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(InputError, match="cannot be started"):
            run_child([program], os.environ)


def test_the_child_has_the_signals_that_we_had() -> None:
    blocked = "grep SigBlk /proc/self/status; true"
    before = Path("/proc/self/status").read_text().split("SigBlk:")[1].split()[0]
    reading, writing = os.pipe()
    run_child(["sh", "-c", blocked], os.environ, stdout=writing)
    os.close(writing)
    with open(reading) as said:
        assert said.read().split()[1] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_sent_to_us_reaches_the_child_once(name: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, COUNTING], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    parent.send_signal(getattr(signal, name))
    assert parent.wait(10) == 41
    parent.stdout.close()


def test_ctrl_c_in_a_terminal_reaches_the_child_once() -> None:
    terminal, far_end = pty.openpty()
    takes_terminal = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    parent = subprocess.Popen(
        [sys.executable, "-c", takes_terminal + PARENT, COUNTING],
        stdin=far_end,
        stdout=far_end,
        start_new_session=True,
    )
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1024)
    time.sleep(0.05)  # until the shell waits
    os.write(terminal, b"\x03")
    assert parent.wait(10) == 41
    os.close(terminal)
    os.close(far_end)
