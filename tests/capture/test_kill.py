"""A recording process that is killed leaves all but its last second, labels included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from moeprof.trace import open_trace

RECORDER = """
import sys, time, torch
import moeprof
from tests.capture.conftest import FAMILIES
torch.set_num_threads(1)
model = FAMILIES["qwen3"]().eval()
prompt = torch.arange(5, 15)[None]
routed = 0
with moeprof.record(model, sys.argv[1], labels="endless"):
    while True:
        out = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        routed += out.shape[1] - 1
        print(routed, time.monotonic(), flush=True)
"""


def test_kill_9_in_mid_generation_loses_at_most_the_last_second(torch: Any, tmp_path: Path) -> None:
    import time

    path = tmp_path / "run.moetrace"
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    seen = [process.stdout.readline().split()]
    while float(seen[-1][1]) - float(seen[0][1]) < 3:
        seen.append(process.stdout.readline().split())
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    seen += [line.split() for line in process.stdout if len(line.split()) == 2]
    process.wait()
    process.stdout.close()
    due = max(int(tokens) for tokens, when in seen if float(when) < killed - 1)
    trace = open_trace(path)
    assert 0 < due <= trace.tokens <= int(seen[-1][0]) + 20
    assert trace.labels == ("endless",)
    assert any("its writer did not close it" in problem for problem in trace.problems)
