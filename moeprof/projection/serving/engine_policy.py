"""How an engine forms its steps: budgets, order, and when a request may enter the KV cache."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import InputError
from moeprof.result import Result


class Admission(StrEnum):
    """What must fit into the free KV before a request enters."""

    PROMPT = "prompt"  # its prompt; output grows on credit (vLLM)
    ESTIMATE = "estimate"  # its whole length beside a share of what runs will still add (SGLang)
    WHOLE = "whole"  # its whole length beside those of all that run (TensorRT-LLM)


class Victim(StrEnum):
    """Who leaves when the KV of the next step does not fit, to be computed anew later."""

    NEWEST = "newest"  # the last to enter; it waits in front of all others (vLLM)
    SHORTEST = "shortest"  # the one with the least output; it waits behind all others (SGLang)


@dataclass(frozen=True)
class EnginePolicy(Result):
    """One engine's rules for one data-parallel group.

    With `mixed`, prompt tokens run beside the decoding sequences, which come first; else a step
    that computes prompts does nothing else and goes before decoding. `chunked` prompts are cut to
    what is left of `max_step_tokens`. KV is held in blocks of `block_tokens`. Raises InputError
    where a number is below 1.
    """

    name: str
    mixed: bool
    chunked: bool
    max_step_tokens: int
    max_sequences: int
    block_tokens: int
    admission: Admission
    victim: Victim
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("max_step_tokens", "max_sequences", "block_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, it must be at least 1")

    def with_limits(
        self, max_step_tokens: int | None = None, max_sequences: int | None = None
    ) -> EnginePolicy:
        """The same rules under limits that the user gave."""
        return replace(
            self,
            max_step_tokens=self.max_step_tokens if max_step_tokens is None else max_step_tokens,
            max_sequences=self.max_sequences if max_sequences is None else max_sequences,
        )


def engine_policy(engine: str, memory_bytes: float | None = None) -> EnginePolicy:
    """Rules and defaults of `engine` on GPUs of `memory_bytes` each; large ones if None.

    Raises InputError for an engine that engines.toml does not hold.
    """
    table = _tables().get(engine)
    if table is None:
        raise InputError(f"no engine '{engine}'; there are {', '.join(_tables())}")
    below = [row for row in table.get("below", []) if (memory_bytes or 1e99) < row["memory_bytes"]]
    values = table | (below[0] if below else {})
    return EnginePolicy(
        name=engine,
        mixed=values["mixed"],
        chunked=values["chunked"],
        max_step_tokens=values["max_step_tokens"],
        max_sequences=values["max_sequences"],
        block_tokens=values["block_tokens"],
        admission=Admission(values["admission"]),
        victim=Victim(values["victim"]),
        source=values["source"],
    )


@cache
def _tables() -> dict[str, Any]:
    text = files(__package__).joinpath("engines.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
