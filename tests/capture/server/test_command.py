"""The command: what it prints, its exit codes, and where its secrets do not go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.cli.main import main
from tests.conftest import small_config

from .engines import VllmServer
from .sockets import Request, serving


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps(small_config(top_k=2)))
    (tmp_path / "p.jsonl").write_text('{"text": "one two", "label": "code"}\n{"text": "three"}\n')
    command = ["capture", "server", "--engine", "vllm", "--prompts", str(tmp_path / "p.jsonl")]
    return [*command, "--model", str(tmp_path / "config.json"), "-o", str(tmp_path / "t")]


def test_json_has_the_keys_of_every_capture(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEPROF_API_KEY", "s3cret")
    with serving(VllmServer(token="s3cret")) as server:
        assert main([*arguments, "--url", server.url, "--json", "--max-new-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["schema"] == "moeprof.capture.server/1"
    result = document["result"]
    assert (result["tokens"], result["dropped"]) == (7 + 5 + 2 * 3, 0)
    assert (result["prefill_tokens"], result["decode_tokens"]) == (12, 6)
    assert document["timing"]["requests_per_s"] > 0
    assert "s3cret" not in out + err


def test_a_prompt_without_an_answer_is_exit_code_1_and_the_next_commands_stand_there(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(request: Request, answer: dict[str, Any]) -> None:
        if request.json()["prompt"] == "three":
            answer["choices"][0]["routed_experts"] = "?"

    with serving(VllmServer(change=change)) as server:
        assert main([*arguments, "--url", server.url]) == 1
    out, err = capsys.readouterr()
    assert "1 x malformed routing" in out and "Next:  moeprof info" in out
    assert "p.jsonl:2: malformed routing" in err and "three" not in out + err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--recorder"], "--recorder is SGLang's"),
        (["--recorder", "--engine", "sglang", "--max-size", "1GiB"], "takes no --max-size"),
        (["--dump-dir", "."], "only --recorder goes without"),
        (["--engine", "trtllm"], "not one of vllm, sglang"),
        (["--api-key-env", "NO_SUCH_KEY"], "no such environment variable"),
        (["--concurrency", "0"], "concurrency is 0"),
        (["--temperature", "-1"], "temperature is -1"),
    ],
)
def test_what_cannot_be_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main([*arguments, "--url", "http://127.0.0.1:9", *more]) == 2
    assert says in capsys.readouterr().err


def test_no_server_is_exit_code_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(VllmServer()) as server:
        pass
    assert main([*arguments, "--url", server.url]) == 1
    assert "is the server running there?" in capsys.readouterr().err
