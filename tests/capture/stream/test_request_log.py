"""Logs of OpenAI-compatible servers as prompts, in the shapes their writers document."""

from __future__ import annotations

import json
import re

import pytest

from moeprof.capture.stream.request_log import chat_template, prompts_from_log
from moeprof.errors import InputError

MESSAGES = [{"role": "user", "content": "w1 w2"}]
CHAT = {"choices": [{"message": {"role": "assistant", "content": "w5 w6"}}]}
TEXT = {"choices": [{"text": "w5 w6"}]}
SECRET = "only-the-asker-knows"


def _write(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def _render(messages):
    return " ".join(f"{m['role']}: {m['content']}" for m in messages)


@pytest.mark.parametrize(
    "line",
    [
        {"request": {"messages": MESSAGES}, "response": CHAT},
        {"request": {"body": {"messages": MESSAGES}}, "response": {"body": CHAT}},
        {"body": {"messages": MESSAGES}, "response": {"status_code": 200, "body": CHAT}},
        {"messages": MESSAGES, "response": CHAT, "status": "success", "error_str": None},
        {"messages": MESSAGES, **CHAT},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}], **CHAT},
    ],
)
def test_chats_in_every_shape(line, tmp_path):
    (prompt,) = prompts_from_log(_write(tmp_path / "log.jsonl", line), _render)
    wanted = line.get("messages") or line.get("body", line.get("request"))
    assert prompt.text.startswith("user: ") and wanted
    assert prompt.completion == "w5 w6"


def test_completions_need_no_template(tmp_path):
    log = _write(tmp_path / "log.jsonl", {"request": {"prompt": "w1 w2"}, "response": TEXT})
    (prompt,) = prompts_from_log(log)
    assert (prompt.text, prompt.completion, prompt.label) == ("w1 w2", "w5 w6", None)


def test_a_batch_is_joined_by_its_ids_and_failures_are_passed_over(tmp_path):
    asked = [{"custom_id": f"r{i}", "body": {"prompt": f"w{i}"}} for i in range(4)]
    failed = {"custom_id": "r0", "response": None, "error": {"message": "expired"}}
    refused = {"custom_id": "r1", "response": {"status_code": 400, "body": {}}}
    answers = [
        {"custom_id": f"r{i}", "response": {"status_code": 200, "body": TEXT}} for i in (3, 2)
    ]
    out = _write(tmp_path / "out.jsonl", failed, refused, *answers)
    prompts = prompts_from_log(out, asked=_write(tmp_path / "in.jsonl", *asked))
    assert [(p.name, p.text) for p in prompts] == [("r3", "w3"), ("r2", "w2")]


def test_ids_of_the_log_are_taken_before_its_texts(tmp_path):
    """As vLLM returns them, in a chat and a completion, and a prompt that was asked in ids."""
    chat = {"message": {"content": "w5 w6"}, "token_ids": [5, 6]}
    text = {"text": "w5", "prompt_token_ids": [1], "token_ids": [5]}
    lines = [
        {
            "request": {"messages": MESSAGES},
            "response": {"id": "chatcmpl-1", "prompt_token_ids": [1, 2], "choices": [chat]},
        },
        {"request": {"prompt": "w1"}, "response": {"choices": [text]}, "id": 7},
        {"request": {"prompt": [1, 2]}, "response": TEXT, "label": "code"},
    ]
    first, second, third = prompts_from_log(_write(tmp_path / "log.jsonl", *lines))
    assert (first.token_ids, first.completion_token_ids) == ((1, 2), (5, 6))
    assert (second.token_ids, second.completion_token_ids) == ((1,), (5,))
    assert (third.token_ids, third.completion, third.label) == ((1, 2), "w5 w6", "code")
    assert [p.name for p in (first, second, third)] == ["chatcmpl-1", "7", None]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"not json {SECRET}", "is no JSON"),
        (f'["{SECRET}"]', "is no JSON object"),
        ({"request": {"prompt": SECRET}, "response": {"choices": []}}, "holds no answer"),
        ({"request": {"prompt": [SECRET, SECRET]}, "response": TEXT}, "holds no prompt"),
        ({"messages": [{"content": [{"type": "image_url", "u": SECRET}]}], **CHAT}, "text alone"),
        ({"messages": [{"nothing": SECRET}, SECRET], **CHAT}, "text alone"),
        ({"messages": [{"content": SECRET}], **CHAT}, "chat template refuses"),  # no role
    ],
)
def test_a_bad_line_is_named_and_not_quoted(line, says, tmp_path):
    good = {"prompt": "w1", **TEXT}
    log = _write(tmp_path / "log.jsonl", good, line)
    with pytest.raises(InputError, match=rf"log\.jsonl:2: .*{says}") as caught:
        prompts_from_log(log, _render)
    assert SECRET not in str(caught.value)


def test_messages_without_a_template_and_an_empty_log(tmp_path):
    log = _write(tmp_path / "log.jsonl", {"messages": MESSAGES, **CHAT})
    with pytest.raises(InputError, match="give its folder"):
        prompts_from_log(log)
    with pytest.raises(InputError, match="no request that was answered"):
        prompts_from_log(_write(tmp_path / "log.jsonl", ""))


def test_the_models_own_template_begins_a_text_once(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<s>": 0, "w1": 1, "w2": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    render = chat_template(tmp_path)
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        render(MESSAGES)
    made.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no chat template"):
        render(MESSAGES)
    made.chat_template = "{{ bos_token }} {% for m in messages %}{{ m.content }}{% endfor %} ?"
    made.save_pretrained(tmp_path)
    text = render(MESSAGES)
    assert re.sub(r"\s+", " ", text).strip() == "w1 w2 ?"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == [0, 1, 2, 3]
