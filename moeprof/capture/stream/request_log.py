"""Prompts and completions out of the log of an OpenAI-compatible server.

A line of JSON is one request with its answer. Where they stand in it, by who writes it:

- OpenAI's batch API: `body` in the input file, `response.body` in the output file, joined by
  `custom_id` (platform.openai.com/docs/guides/batch); a file of lines with both is taken as it is.
- LiteLLM's `StandardLoggingPayload`: `messages` and `response` side by side
  (docs.litellm.ai/docs/proxy/logging_spec).
- vLLM, asked to `return_token_ids`: `prompt_token_ids` of the answer or its choice, and `token_ids`
  of the choice (vllm-project/vllm, entrypoints/openai/chat_completion/protocol.py).
- anything else that keeps `request` and `response`, or the two bodies' own keys on one line.

Messages never quote a line: it is what somebody asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from moeprof.capture.prompts import Prompt, read_lines
from moeprof.errors import InputError

Render = Callable[[Sequence[Mapping[str, Any]]], str]  # messages to the text a model is given


def prompts_from_log(
    path: str | Path, render: Render | None = None, *, asked: str | Path | None = None
) -> list[Prompt]:
    """The prompts of `path`, in order, with what they were answered.

    `render` makes a text of chat messages, as `chat_template` does; `asked` is the input file of a
    batch whose output is `path`. Token ids are taken where the log has them. The prompt's `name` is
    the line's `custom_id` or `id`, or the answer's `id`. Requests that failed (an
    `error`, or a status other than 200) are passed over. Raises InputError, naming file and line,
    for a line that holds no request with an answer, and where messages need a template.
    """
    bodies = _bodies(Path(asked)) if asked is not None else {}
    prompts = []
    for place, line in _objects(Path(path)):
        answer = _body(line.get("response"))
        if line.get("error") or not _is_ok(line.get("response")):
            continue
        request = bodies.get(str(line.get("custom_id")), _request(line))
        prompts.append(_prompt(line, request, answer if answer else line, render, place))
    if not prompts:
        raise InputError(f"{path}: holds no request that was answered")
    return prompts


def _prompt(
    line: Mapping[str, Any],
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    render: Render | None,
    place: str,
) -> Prompt:
    choice = _first_choice(answer)
    asked, answered = _asked_ids(request, answer, choice), _ids(choice.get("token_ids"))
    completion = None if answered else _completion(choice)
    if answered is None and completion is None:
        raise InputError(f"{place}: holds no answer: choices, or response with choices")
    label, names = line.get("label"), (line.get("custom_id"), line.get("id"), answer.get("id"))
    return Prompt(
        "" if asked else _text(request, render, place),
        label if isinstance(label, str) else None,
        place,
        completion,
        asked,
        answered,
        next((str(name) for name in names if name is not None), None),
    )


def _asked_ids(
    request: Mapping[str, Any], answer: Mapping[str, Any], choice: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """The ids that the model was given: vLLM returns them, and a completion may be asked in ids."""
    told = (choice.get("prompt_token_ids"), answer.get("prompt_token_ids"), request.get("prompt"))
    return next((ids for value in told if (ids := _ids(value))), None)


def _ids(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not value:
        return None
    return tuple(value) if all(type(token) is int for token in value) else None


def chat_template(folder: str | Path, *, trust_remote_code: bool = False) -> Render:
    """How the tokenizer in `folder` makes a text of messages; it is loaded when that is asked.

    The text lacks the token that the tokenizer itself begins every text with. InputError, when it
    is asked, where there is no tokenizer or no template.
    """

    @cache
    def tokenizer() -> Any:
        return _with_template(folder, trust_remote_code)

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        made: str = tokenizer().apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        begins = tokenizer().bos_token
        if begins and tokenizer()("")["input_ids"][:1] == [tokenizer().bos_token_id]:
            return made.removeprefix(begins)
        return made

    return render


def _with_template(folder: str | Path, trust_remote_code: bool) -> Any:
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {reason[:300]}") from None
    if not getattr(found, "chat_template", None):
        raise InputError(f"{folder}: its tokenizer has no chat template, which messages need")
    return found


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            found = json.loads(line)
        except ValueError:
            raise InputError(f"{place}: is no JSON; a log has one request a line") from None
        if not isinstance(found, dict):
            raise InputError(f"{place}: is no JSON object; a log has one request a line")
        yield place, found


def _bodies(path: Path) -> dict[str, Mapping[str, Any]]:
    """By custom_id, the requests of a batch's input file."""
    return {str(line.get("custom_id")): _request(line) for _, line in _objects(path)}


def _request(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body of the request, wherever the line has it."""
    for name in ("request", "body"):
        if isinstance(line.get(name), dict):
            return _body(line[name])
    return line


def _body(value: Any) -> Mapping[str, Any]:
    """`value`, or its `body` where it has one; nothing if it is no object."""
    if not isinstance(value, dict):
        return {}
    inner = value.get("body")
    return inner if isinstance(inner, dict) else value


def _is_ok(response: Any) -> bool:
    status = response.get("status_code", 200) if isinstance(response, dict) else 200
    return bool(status == 200)


def _text(request: Mapping[str, Any], render: Render | None, place: str) -> str:
    messages, prompt = request.get("messages"), request.get("prompt")
    if isinstance(messages, list) and messages:
        return _rendered(messages, render, place)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    raise InputError(f"{place}: holds no prompt: messages, or prompt as one text")


def _rendered(messages: list[Any], render: Render | None, place: str) -> str:
    if not all(isinstance(m, dict) and _is_text(m.get("content")) for m in messages):
        raise InputError(f"{place}: a message holds more than text; stream takes text alone")
    if render is None:
        raise InputError(f"{place}: messages need the model's chat template: give its folder")
    try:
        text = render(messages)
    except InputError:
        raise
    except Exception as error:  # whatever a template raises; its words may quote the messages
        kind = type(error).__name__
        raise InputError(f"{place}: the chat template refuses these messages ({kind})") from None
    if not text:
        raise InputError(f"{place}: the chat template makes no text of these messages")
    return text


def _is_text(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    plain = all(isinstance(part, dict) and part.get("type") == "text" for part in parts)
    return content is None or isinstance(content, str) or (isinstance(content, list) and plain)


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return {}
    return choices[0]


def _completion(first: Mapping[str, Any]) -> str | None:
    """The text of a choice, without what a server keeps apart as reasoning; or None."""
    message = first.get("message")
    if not isinstance(message, dict):
        text = first.get("text")
        return text if isinstance(text, str) else None
    content = message.get("content")
    return content if isinstance(content, str) else None
