"""Reading the prompts that a capture runs through a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeprof.errors import InputError

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


@dataclass(frozen=True)
class Prompt:
    """One prompt. `place` names it in messages, which never quote its text.

    `token_ids` stand in the place of `text`, and `completion_token_ids` in that of `completion`:
    what an engine was really given, for captures that take ids.
    """

    text: str = ""
    label: str | None = None
    place: str = "prompt"
    completion: str | None = None  # what it was answered with, for captures that are given that
    token_ids: tuple[int, ...] | None = None
    completion_token_ids: tuple[int, ...] | None = None
    name: str | None = None  # the id by which an engine or its client knows it

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that were given."""
        return (*(self.token_ids or ()), *(self.completion_token_ids or ()))


class _Line(BaseModel):
    """One line of a .jsonl file; other keys are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: Annotated[str, Field(min_length=1)] | None = None
    label: str | None = None
    completion: str | None = None
    token_ids: TokenIds | None = None
    completion_token_ids: TokenIds | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, in order: `.jsonl` of {"text", "label"}, or `.txt` of one a line.

    A line of `.jsonl` may have "token_ids" instead of "text", and "completion_token_ids" instead of
    "completion". Blank lines are passed over. Raises InputError, with file and line, for anything
    else.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".txt"):
        raise InputError(
            f'{path}: prompts are a .txt file, one a line, or .jsonl of {{"text": ...}}'
        )
    prompts = []
    for number, line in enumerate(read_lines(path), start=1):
        place = f"{path}:{number}"
        if line.strip():
            plain = path.suffix == ".txt"
            prompts.append(Prompt(line, place=place) if plain else _parse(line, place))
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return prompts


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. Raises InputError."""
    try:
        # Not splitlines: a prompt may hold U+2028 and the like, which JSON does not escape.
        return [line.rstrip("\r") for line in path.read_text(encoding="utf-8").split("\n")]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from None


def _parse(line: str, place: str) -> Prompt:
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f'{place}: {what}; a line is {{"text": "...", "label": "..."}}') from None
    if (parsed.text is None) == (parsed.token_ids is None):
        raise InputError(f"{place}: text: give it or token_ids, one of them")
    if parsed.completion is not None and parsed.completion_token_ids is not None:
        raise InputError(f"{place}: completion: give it or completion_token_ids, one of them")
    return Prompt(
        parsed.text or "",
        parsed.label,
        place,
        parsed.completion,
        None if parsed.token_ids is None else tuple(parsed.token_ids),
        None if parsed.completion_token_ids is None else tuple(parsed.completion_token_ids),
    )


def check_token_ids(prompt: Prompt, vocabulary: int) -> None:
    """Raises InputError unless every id that `prompt` gives is one of so many."""
    wrong = [token for token in prompt.ids if not 0 <= token < vocabulary]
    if wrong:
        raise InputError(
            f"{prompt.place}: token id {wrong[0]} is not in this model's vocabulary of "
            f"{vocabulary:,}: give ids of its own tokenizer"
        )


def check_texts(prompts: Iterable[Prompt]) -> None:
    """Raises InputError where a prompt is token ids, for captures that take text alone."""
    for prompt in prompts:
        if prompt.token_ids is not None:
            raise InputError(
                f"{prompt.place}: token_ids are taken by capture stream and transformers; give text"
            )
