"""Reading the prompts that a capture runs through a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeprof.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """One prompt. `place` names it in messages, which never quote its text."""

    text: str
    label: str | None = None
    place: str = "prompt"
    completion: str | None = None  # what it was answered with, for captures that are given that


class _Line(BaseModel):
    """One line of a .jsonl file; other keys are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str = Field(min_length=1)
    label: str | None = None
    completion: str | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, in order: `.jsonl` of {"text", "label"}, or `.txt` of one a line.

    Blank lines are passed over. Raises InputError, with file and line, for anything else.
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
    return Prompt(parsed.text, parsed.label, place, parsed.completion)
