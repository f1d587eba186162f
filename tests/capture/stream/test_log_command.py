"""`capture stream --log` on the shipped model: what a server was asked and answered, to a trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import moeprof
from moeprof.capture.naming import KEY_VARIABLE, request_name
from moeprof.cli.main import main
from moeprof.trace import open_trace

SHIPPED = Path(moeprof.__file__).parent / "demo" / "tiny_m3"
SECRET = "only the asker knows"
MESSAGES = [{"role": "user", "content": SECRET}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant> "


def chat(answer: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": answer}}]}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def capture(model: Path, log: Path, output: Path, *more: str) -> int:
    arguments = [str(model), "--log", str(log), "-o", str(output), "--device", "cpu", *more]
    return main(["capture", "stream", *arguments, "--threads", "1", "--quiet"])


@pytest.fixture(scope="module")
def with_template(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, with a chat template."""
    folder = tmp_path_factory.mktemp("shipped") / "tiny_m3"
    shutil.copytree(SHIPPED, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_chats_go_through_the_template(
    with_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request's id is hashed, as in `capture vllm`."""
    import transformers

    monkeypatch.setenv(KEY_VARIABLE, "a key")
    line = {"id": "call-1", "messages": MESSAGES, "response": chat("an answer of some words")}
    failed = {"messages": MESSAGES, "response": None, "error": {"message": "expired"}}
    log = write(tmp_path / "log.jsonl", line, failed)
    assert capture(with_template, log, tmp_path / "t", "--token-ids") == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    asked = tokenizer(f"<user> {SECRET}\n<assistant> ")["input_ids"]
    answered = tokenizer("an answer of some words", add_special_tokens=False)["input_ids"]
    trace = open_trace(tmp_path / "t")
    assert trace.token_id.tolist() == [*asked, *answered[:-1]]
    (request,) = trace.requests
    assert (request.prompt_tokens, request.output_tokens) == (len(asked), len(answered))
    assert request.name == request_name("call-1", "hashed", b"a key")


def test_a_batch_is_joined_and_its_ids_are_kept_plain_if_asked(tmp_path: Path) -> None:
    asked = [{"custom_id": f"r{i}", "body": {"prompt": f"number {i} of"}} for i in range(2)]
    body = {"choices": [{"text": " two"}]}
    answered = [
        {"custom_id": f"r{i}", "response": {"status_code": 200, "body": body}} for i in (1, 0)
    ]
    requests = write(tmp_path / "in.jsonl", *asked)
    log = write(tmp_path / "out.jsonl", *answered)
    more = ("--log-requests", str(requests), "--request-names", "plain")
    assert capture(SHIPPED, log, tmp_path / "t", *more) == 0
    assert [request.name for request in open_trace(tmp_path / "t").requests] == ["r1", "r0"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"messages": MESSAGES, "response": chat("a")}, "no chat template"),
        (f"not json {SECRET}", "log.jsonl:2: is no JSON"),
        ({"prompt": SECRET, "response": {"choices": []}}, "log.jsonl:2: holds no answer"),
        ({"prompt": [1, 99999], "response": {"choices": [{"text": "a"}]}}, "log.jsonl:2: token id"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_not_quoted(
    line: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a", "response": {"choices": [{"text": "b"}]}}
    assert capture(SHIPPED, write(tmp_path / "log.jsonl", good, line), tmp_path / "t") == 2
    said = capsys.readouterr().err
    assert says in said and SECRET not in said and said.count("\n") == 1
    assert not (tmp_path / "t").exists()
