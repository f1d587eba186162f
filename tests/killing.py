"""Running a program that reports its progress, and killing it in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def progress_until_killed(code: str, *arguments: str, seconds: float) -> tuple[int, int]:
    """Run `code`, which prints "count monotonic-seconds" lines, and `kill -9` it after `seconds`.

    Returns the count it had printed a second before the kill, and the last one.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    with process.stdout as printed:
        seen = [_counted(printed.readline())]
        while float(seen[-1][1]) - float(seen[0][1]) < seconds:
            seen.append(_counted(printed.readline()))
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        seen += [line.split() for line in printed if len(line.split()) == 2]
    process.wait()
    return max(int(n) for n, when in seen if float(when) < killed - 1), int(seen[-1][0])


def _counted(line: str) -> list[str]:
    assert line, "the program died before it was killed"
    return line.split()
