"""Two engines behind one server: both are switched, and each writes a trace of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from moeprof import validate_trace
from tests.engines.vllm.server import at_once, serving

PROMPTS = [list(range(10 + i, 40 + 3 * i)) for i in range(8)]
TOKENS_EACH = 6


def test_all_engines_are_switched(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.moetrace"
    arguments = ["--enforce-eager", "--data-parallel-size", "2"]
    with serving(tiny, tmp_path, *arguments, VLLM_PLUGINS="moeprof") as server:
        status = server.status()
        assert [rank["rank"]["dp"] for rank in status["ranks"]] == [0, 1]
        started = server.call("/moeprof/start", {"output": str(output)})
        assert [rank["recording"] for rank in started["ranks"]] == [True, True], started
        assert started["path"] == str(output)
        assert "recording already" in server.call("/moeprof/start", {"output": "/x"})["error"]
        at_once([partial(server.complete, f"n{i}", p, TOKENS_EACH) for i, p in enumerate(PROMPTS)])
        server.settled()
        stopped = server.call("/moeprof/stop", {})
    assert not stopped["recording"] and not stopped["closing"]
    expected = sum(len(prompt) + TOKENS_EACH - 1 for prompt in PROMPTS)
    assert stopped["tokens"] == expected and stopped["dropped"] == {}
    folders = sorted((output / "ranks").iterdir())
    assert [folder.name for folder in folders] == ["dp00-pp00-tp00", "dp01-pp00-tp00"]
    infos = [validate_trace(folder) for folder in folders]
    assert all(info.complete and info.problems == [] and info.tokens for info in infos)
    assert sum(info.tokens for info in infos) == expected
