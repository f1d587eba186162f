"""Answers of serving engines with the experts of each token in them: vLLM, SGLang, NeMo-RL."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from moeprof.trace.formats.reading import open_bytes, reading
from moeprof.trace.rows import Request

_NPY = "k05VTVBZ"  # base64 of the magic bytes of .npy
_NEMO = re.compile(r"nrlre1:(int8|int16|int32):(\d+)x(\d+)x(\d+):(.*)", re.DOTALL)
SECOND_CHOICE = "prompt token that another choice of the same request repeats"
GAP = "padding or gap (-1)"


def detect_vllm(head: Head) -> bool:
    """JSON with `routed_experts` as base64 of an .npy, or as an array with shape and dtype."""
    text = head.text
    return text.lstrip()[:1] in ("{", "[") and bool(
        re.search(rf'"(prompt_)?routed_experts"\s*:\s*("{_NPY}|\{{)', text)
    )


def detect_sglang(head: Head) -> bool:
    """JSON with `routed_experts` as base64 without a header."""
    text = head.text
    return text.lstrip()[:1] in ("{", "[") and bool(
        re.search(r'"routed_experts"\s*:\s*"(?!nrlre1:)[A-Za-z0-9+/]', text)
    )


def detect_nemo(head: Head) -> bool:
    """JSON with a `nrlre1:` envelope."""
    return head.text.lstrip()[:1] in ("{", "[", '"') and '"nrlre1:' in head.text


def documents(path: Path) -> Iterator[Any]:
    """The JSON document in `path`, or those of its lines; lists are passed through."""
    with open_bytes(path) as file:
        text = file.read().decode("utf-8-sig").strip()
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        for line in text.splitlines():
            if line.strip():
                yield json.loads(line.removeprefix("data: "))
        return
    yield from whole if isinstance(whole, list) else [whole]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return base64.b85decode(text)  # Dynamo before June 2026


def array_of(value: Any) -> NDArray[np.integer[Any]]:
    """[tokens, layers, k] of what an engine put into a response."""
    array: NDArray[Any]
    if isinstance(value, str):
        array = np.load(io.BytesIO(_decoded(value)), allow_pickle=False)
    elif isinstance(value, dict):
        array = np.frombuffer(_decoded(value["data"]), np.dtype(str(value["dtype"])))
        array = array.reshape([int(n) for n in value["shape"]])
    else:
        array = np.array(value)
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise ValueError(f"routed_experts is {array.dtype} {array.shape}, not [tokens, layers, k]")
    return array


def native_layers(count: int, options: Options, found: Findings) -> tuple[int, ...]:
    """Native indices of `count` layers, which are all decoder layers or all MoE layers."""
    if options.moe_layers is not None and count == len(options.moe_layers) != options.layers:
        return options.moe_layers
    if options.layers is not None and count != options.layers:
        raise InputError(
            f"the file has {count} layers, the model {options.layers}, of which "
            f"{len(options.moe_layers or ())} are MoE layers"
        )
    if options.layers is None:
        found.note("layers are counted as they stand in the file; --model names native ones")
    return tuple(range(count))


def only_moe(block: Block, options: Options) -> Block:
    """Dense layers of the model marked as such, for a top-1 of 0 looks like an expert."""
    if options.moe_layers is None:
        return block
    dense = [i for i, layer in enumerate(block.layers) if layer not in options.moe_layers]
    if dense:
        signed = block.experts.astype(np.int32)
        signed[:, dense] = -1
        return Block(**{**vars(block), "experts": signed})
    return block


def read_vllm(paths: Sequence[Path], options: Options) -> Import:
    """A response, or one a line; every choice is a request."""
    return file_by_file(paths, lambda path, found: _read_vllm(path, found, options))


def _read_vllm(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    with reading(path, "a vLLM response"):
        step = request = 0
        found.engine = "vllm"
        for response in documents(path):
            found.model = str(response.get("model") or found.model)
            for number, choice in enumerate(response.get("choices", [response])):
                block = _choice(response, choice, number, request, step, found, options)
                if block is None:
                    found.skip("choice without routed_experts")
                    continue
                yield block
                request, step = request + 1, int(block.step[-1]) + 1 if len(block) else step


def _choice(
    response: dict[str, Any],
    choice: dict[str, Any],
    number: int,
    request: int,
    step: int,
    found: Findings,
    options: Options,
) -> Block | None:
    """One choice: its own rows, and those of the prompt for the first."""
    value = choice.get("routed_experts")
    if value is None:
        return None
    experts = array_of(value)
    usage = response.get("usage") or {}
    prompt = usage.get("prompt_tokens")
    start = 0
    if response.get("prompt_routed_experts") is not None:  # vLLM 0.21: two arrays
        before = array_of(response["prompt_routed_experts"])
        experts = np.concatenate([before, experts])
        prompt = len(before)
    elif prompt is not None and usage.get("completion_tokens") is not None:
        choices = max(1, len(response.get("choices", [])))
        start = _start(len(experts), prompt, usage["completion_tokens"], choices, value)
    if number and prompt is not None:  # its prompt is the first choice's
        repeated = max(0, prompt - start)
        found.skip(SECOND_CHOICE, min(repeated, len(experts)))
        experts, start = experts[repeated:], max(start, prompt)
    _describe(found, request, prompt, len(experts) + start)
    layers = native_layers(experts.shape[1], options, found)
    _note_steps(found)
    return only_moe(
        sequence_block(experts, layers, request=request, step=step, prompt=prompt, start=start),
        options,
    )


def _start(rows: int, prompt: int, completion: int, choices: int, value: Any) -> int:
    """Leading prompt tokens that the client asked to leave out (`routed_experts_prompt_start`)."""
    if isinstance(value, dict) and "start" in value:
        return int(value["start"])
    return max(0, prompt + completion - 1 - rows) if choices == 1 else 0


def _describe(found: Findings, request: int, prompt: int | None, rows: int) -> None:
    output = None if prompt is None else rows - prompt + 1
    found.requests.append(Request(request, prompt_tokens=prompt, output_tokens=output))


def _note_steps(found: Findings) -> None:
    found.note("batches are not in the file: steps are those of each request served alone")


def read_sglang(paths: Sequence[Path], options: Options) -> Import:
    """A response, or one a line. int32 without a shape: the model must be known."""
    return file_by_file(paths, lambda path, found: _read_sglang(path, found, options))


def _read_sglang(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    if options.layers is None or options.top_k is None:
        raise InputError(f"{path}: SGLang sends no shape; give --model")
    with reading(path, "an SGLang response"):
        step = 0
        found.engine = "sglang"
        for request, response in enumerate(documents(path)):
            meta = response.get("meta_info") or response.get("sgl_ext") or {}
            text = meta.get("routed_experts") or _of_choice(response)
            usage = response.get("usage") or meta
            experts = _shaped(_decoded(text), options)
            prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
            start = 0
            if prompt is not None and output is not None:
                start = max(0, prompt + output - 1 - len(experts))
            _describe(found, request, prompt, len(experts) + start)
            _note_steps(found)
            block = sequence_block(
                experts, range(options.layers), request=request, step=step,
                prompt=prompt, start=start,
            )  # fmt: skip
            step = int(block.step[-1]) + 1 if len(block) else step
            yield only_moe(block, options)


def _of_choice(response: dict[str, Any]) -> str:
    text: str = response["choices"][0]["sgl_ext"]["routed_experts"]
    return text


def _shaped(data: bytes, options: Options) -> NDArray[np.int32]:
    assert options.layers is not None and options.top_k is not None
    width = options.layers * options.top_k
    if len(data) % (4 * width):
        raise InputError(
            f"{len(data)} bytes are no whole rows of {options.layers} layers x top-{options.top_k}"
            " int32: is --model the model that was served?"
        )
    return np.frombuffer(data, "<i4").reshape(-1, options.layers, options.top_k)


def read_nemo(paths: Sequence[Path], options: Options) -> Import:
    """Envelopes in JSON, wherever they stand; each is a request."""
    return file_by_file(paths, lambda path, found: _read_nemo(path, found, options))


def _read_nemo(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    with reading(path, "NeMo-RL"):
        step = request = 0
        for document in documents(path):
            for text in _envelopes(document):
                match = _NEMO.fullmatch(text)
                if match is None:
                    raise InputError(f"{path}: {text[:40]!r} is no envelope of this version")
                shape = [int(match[i]) for i in (2, 3, 4)]
                experts = np.frombuffer(_decoded(match[5]), match[1]).reshape(shape)
                layers = native_layers(shape[1], options, found)
                block = sequence_block(experts, layers, request=request, step=step)
                found.requests.append(Request(request))
                request, step = request + 1, step + len(block)
                yield only_moe(block, options)
        found.note("prompt lengths and batches are not in the file: phases are unknown")


def _envelopes(value: Any) -> Iterator[str]:
    """Every envelope in a JSON document, in order."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and item.startswith("nrlre1:"):
            yield item
        elif isinstance(item, dict):
            stack += list(item.values())[::-1]
        elif isinstance(item, list):
            stack += item[::-1]


VLLM_FORMAT = Format("vllm", "vLLM responses with routed_experts", detect_vllm, read_vllm)
SGLANG_FORMAT = Format("sglang", "SGLang responses with routed_experts", detect_sglang, read_sglang)
NEMO_FORMAT = Format("nemo-rl", "NeMo-RL routing replay envelopes", detect_nemo, read_nemo)
