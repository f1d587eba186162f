"""JSON documents: prompts with prefill and decode (granite traces), lists of steps (2510.05497)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.errors import InputError
from moeprof.trace.formats.block import (
    Block,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
    sequence_block,
)
from moeprof.trace.formats.json_lines import integers
from moeprof.trace.formats.reading import read_json, reading
from moeprof.trace.rows import Phase, Request


def detect_prompts(head: Head) -> bool:
    """A document with `prompts`, each with `prefill` and `decode`."""
    text = head.text.lstrip()[:4096]
    return text.startswith("{") and all(f'"{k}"' in text for k in ("prompts", "prefill", "top_k"))


def read_prompts(paths: Sequence[Path], options: Options) -> Import:
    """Each prompt is a request, its name its label."""
    return file_by_file(paths, _read_prompts)


def _read_prompts(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "prompts JSON"):
        document = read_json(path)
        found.experts, found.model = int(document["num_experts"]), str(document.get("model", ""))
        found.rank_ordered = True
        layers = range(int(document["num_layers"]))
        step = 0
        for index, (name, prompt) in enumerate(document["prompts"].items()):
            experts = integers([*prompt["prefill"], *prompt["decode"]])
            if experts.ndim != 3 or experts.shape[1] != len(layers):
                raise InputError(f"{path}: prompt '{name}' is not [tokens][{len(layers)}][k]")
            if len(prompt["prefill"]) != prompt["prompt_len"]:
                found.note(f"prompt '{name}': prefill is not as long as prompt_len says")
            found.requests.append(
                Request(index, label=str(name), prompt_tokens=len(prompt["prefill"]))
            )
            block = sequence_block(
                experts, layers, request=index, step=step, prompt=len(prompt["prefill"])
            )
            step = int(block.step[-1]) + 1 if len(block) else step
            yield block


def detect_steps(head: Head) -> bool:
    """A list of steps, each `{"<layer>": [[ids] a token] or null}`."""
    return bool(re.match(r'\s*\[\s*\{\s*"\d+"\s*:\s*(\[\s*\[|null)', head.text))


def read_steps(paths: Sequence[Path], options: Options) -> Import:
    """One file a request: the first step is its prefill, each later one a decode token."""
    return file_by_file(paths, _read_steps)


def _read_steps(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "list of steps"):
        steps = read_json(path)
        position = 0
        for number, step in enumerate(steps):
            block = _step_block(step, number, position)
            if block is None:
                found.skip("step without a routed layer")
                continue
            position += len(block)
            if number == 0:
                found.requests.append(Request(0, prompt_tokens=len(block)))
            yield block


def _step_block(step: dict[str, Any], number: int, position: int) -> Block | None:
    routed = sorted((int(layer), ids) for layer, ids in step.items() if ids is not None)
    if not routed:
        return None
    experts = integers([ids for _, ids in routed]).swapaxes(0, 1)
    tokens = len(experts)
    phase = Phase.DECODE if number else Phase.PREFILL
    return Block(
        tuple(layer for layer, _ in routed),
        experts,
        step=np.full(tokens, number, np.int64),
        request=np.zeros(tokens, np.int32),
        position=np.arange(position, position + tokens, dtype=np.int32),
        phase=np.full(tokens, phase, np.int8),
    )


PROMPTS_FORMAT = Format(
    "prompts-json", "JSON of prompts with prefill and decode", detect_prompts, read_prompts
)
STEPS_FORMAT = Format("steps-json", "list of steps (arXiv 2510.05497)", detect_steps, read_steps)
