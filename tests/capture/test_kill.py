"""A recording process that is killed leaves all but its last second, labels included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeprof.trace import open_trace
from tests.killing import progress_until_killed

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
    path = tmp_path / "run.moetrace"
    due, last = progress_until_killed(RECORDER, str(path), seconds=3)
    trace = open_trace(path)
    assert 0 < due <= trace.tokens <= last + 20
    assert trace.labels == ("endless",)
    assert any("its writer did not close it" in problem for problem in trace.problems)
