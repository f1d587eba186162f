"""Prompt files: what is read, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof.capture import Prompt, read_prompts
from moeprof.capture.prompts import check_texts, check_token_ids
from moeprof.errors import InputError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "one\r\n\n  two \u2028 still two\n")
    assert read_prompts(path) == [
        Prompt("one", None, f"{path}:1"),
        Prompt("  two \u2028 still two", None, f"{path}:3"),
    ]


def test_json_lines_have_labels(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": "code", "id": 7}\n{"text": "b"}\n'
    prompts = read_prompts(write(tmp_path / "p.jsonl", lines))
    assert [(p.text, p.label) for p in prompts] == [("a", "code"), ("b", None)]


def test_token_ids_stand_in_the_place_of_texts(tmp_path: Path) -> None:
    lines = '{"token_ids": [3, 4], "completion_token_ids": [5], "label": "a"}\n{"text": "b"}\n'
    first, second = read_prompts(write(tmp_path / "p.jsonl", lines))
    assert (first.token_ids, first.completion_token_ids, first.text) == ((3, 4), (5,), "")
    assert second.token_ids is None
    check_token_ids(first, 6)
    with pytest.raises(InputError, match=r"p\.jsonl:1: token id 5 is not in .*of 5: give ids"):
        check_token_ids(first, 5)
    check_texts([second])
    with pytest.raises(InputError, match=r"p\.jsonl:1: token_ids are taken by .*; give text"):
        check_texts([second, first])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a", r"p\.csv: prompts are a \.txt file"),
        ("p.txt", "\n \n", r"p\.txt: holds no prompts"),
        ("p.txt", b"\xff\xfe", r"p\.txt: not UTF-8 at byte 0"),
        ("p.jsonl", '{"text": "a"}\n{"text": "b"', r"p\.jsonl:2: Invalid JSON"),
        ("p.jsonl", '{"label": "a"}', r"p\.jsonl:1: text: give it or token_ids"),
        ("p.jsonl", '{"text": "secret", "token_ids": [1]}', r"p\.jsonl:1: text: give it or token"),
        ("p.jsonl", '{"token_ids": []}', r"p\.jsonl:1: token_ids: List should have at least 1"),
        ("p.jsonl", '{"token_ids": [1, -1]}', r"p\.jsonl:1: token_ids\.1: Input should be greater"),
        (
            "p.jsonl",
            '{"token_ids": [1, 1.5]}',
            r"p\.jsonl:1: token_ids\.1: Input should be a valid",
        ),
        (
            "p.jsonl",
            '{"text": "a", "completion": "secret", "completion_token_ids": [1]}',
            r"p\.jsonl:1: completion: give it or completion_token_ids",
        ),
        ("p.jsonl", '{"text": ""}', r"p\.jsonl:1: text: String should have at least 1"),
        ("p.jsonl", '{"text": "secret", "label": 3}', r"p\.jsonl:1: label: Input should be"),
        ("p.jsonl", '["secret"]', r"p\.jsonl:1: "),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(write(tmp_path / name, content))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.txt: cannot be read: No such file"):
        read_prompts(tmp_path / "nothing.txt")
