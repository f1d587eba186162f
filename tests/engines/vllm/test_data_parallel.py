"""Two engines behind one server: both are switched, and each writes a trace of its own.

No prompt is sent: where MoE layers are spread over data-parallel engines, vLLM 0.32 cannot run a
forward on the CPU (all_gatherv of its communicator raises NotImplementedError).
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.engines.vllm.server import serving


def test_all_engines_are_switched(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.moetrace"
    arguments = ["--enforce-eager", "--data-parallel-size", "2"]
    with serving(tiny, tmp_path, *arguments, VLLM_PLUGINS="moeprof") as server:
        status = server.status()
        assert [rank["rank"]["dp"] for rank in status["ranks"]] == [0, 1]
        assert not status["recording"]
        started = server.call("/moeprof/start", {"output": str(output)})
        assert [rank["recording"] for rank in started["ranks"]] == [True, True], started
        assert started["path"] == str(output)
        assert "recording already" in server.call("/moeprof/start", {"output": "/x"})["error"]
        stopped = server.call("/moeprof/stop", {})
        assert not stopped["recording"] and not stopped["closing"], stopped
        assert "nothing is being recorded" in server.call("/moeprof/stop", {})["error"]
    folders = sorted((output / "ranks").iterdir())
    assert [folder.name for folder in folders] == ["dp00-pp00-tp00", "dp01-pp00-tp00"]
    for folder in folders:
        assert json.loads((folder / "manifest.json").read_text())["complete"]
