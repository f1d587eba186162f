"""Cut prompts to equal numbers of tokens, so that a batch of them needs no padding.

    python traces/make/trimming.py moeprof/demo/tiny_m3/prompts.jsonl

rewrites a prompt file so that every eight prompts in a row have the same length, shortest first.
Padding is avoided because M3's sparse attention, in transformers 5.23, chooses key blocks by
column and not by position: rows that are padded on the left compute something else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import AutoTokenizer

Count = Callable[[str], int]
GROUP = 8
MODEL = Path(__file__).parents[2] / "moeprof" / "demo" / "tiny_m3"


def token_counter(model: Path = MODEL) -> Count:
    """A function that counts the tokens of a text, BOS included."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda text: len(tokenizer(text)["input_ids"])


def trim(text: str, tokens: int, count: Count) -> str | None:
    """The longest start of `text` with exactly `tokens` tokens; None if no start has them."""
    for stop in range(min(len(text), 8 * tokens), 0, -1):
        found = count(text[:stop])
        if found == tokens:
            return text[:stop]
        if found < tokens:
            return None
    return None


def equal_groups(prompts: list[dict[str, str]], count: Count) -> Iterator[dict[str, str]]:
    """The prompts, shortest first, each group cut to the length of its shortest."""
    ordered = sorted(prompts, key=lambda prompt: count(prompt["text"]))
    for start in range(0, len(ordered), GROUP):
        group = ordered[start : start + GROUP]
        shortest = count(group[0]["text"])
        for prompt in group:
            text = trim(prompt["text"], shortest, count)
            if text is None:
                raise SystemExit(f"no start of {prompt['text'][:40]!r} has {shortest} tokens")
            yield {**prompt, "text": text}


def main() -> None:
    """Rewrite the file."""
    path, count = Path(sys.argv[1]), token_counter()
    prompts = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps(prompt, ensure_ascii=False) for prompt in equal_groups(prompts, count)]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
