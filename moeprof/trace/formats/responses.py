"""Answers of serving engines with the experts of each token in them: vLLM, SGLang, NeMo-RL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
from moeprof.trace.formats.reading import open_bytes, reading
from moeprof.trace.formats.routed import Routed, decoded, sglang_sequences, vllm_sequences
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
        found.engine = "vllm"
        sequences = _vllm_sequences(path, found)
        yield from _blocks(sequences, "choice without routed_experts", found, options)


def _vllm_sequences(path: Path, found: Findings) -> Iterator[Routed | None]:
    for response in documents(path):
        found.model = str(response.get("model") or found.model)
        yield from vllm_sequences(response)


def read_sglang(paths: Sequence[Path], options: Options) -> Import:
    """A response, or one a line. int32 without a shape: the model must be known."""
    return file_by_file(paths, lambda path, found: _read_sglang(path, found, options))


def _read_sglang(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    layers, top_k = options.layers, options.top_k
    if layers is None or top_k is None:
        raise InputError(f"{path}: SGLang sends no shape; give --model")
    with reading(path, "an SGLang response"):
        found.engine = "sglang"
        each = (sglang_sequences(response, layers, top_k) for response in documents(path))
        sequences = (routed for response in each for routed in response)
        yield from _blocks(sequences, "response without routed_experts", found, options)


def _blocks(
    sequences: Iterable[Routed | None], without: str, found: Findings, options: Options
) -> Iterator[Block]:
    """Each sequence as a request that was served alone; `without` is why there is none."""
    step = request = 0
    for routed in sequences:
        if routed is None:
            found.skip(without)
            continue
        found.skip(SECOND_CHOICE, routed.repeated)
        found.note("batches are not in the file: steps are those of each request served alone")
        found.requests.append(
            Request(request, prompt_tokens=routed.prompt, output_tokens=routed.output)
        )
        block = request_block(routed, request, step, options, found)
        yield block
        request, step = request + 1, int(block.step[-1]) + 1 if len(block) else step


def request_block(
    routed: Routed, request: int, step: int, options: Options, found: Findings
) -> Block:
    """One sequence as rows of its own, dense layers of the model marked as such."""
    layers = native_layers(routed.experts.shape[1], options, found)
    block = sequence_block(
        routed.experts,
        layers,
        request=request,
        step=step,
        prompt=routed.prompt,
        start=routed.start,
        token_id=routed.token_id,
    )
    return only_moe(block, options)


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
                experts = np.frombuffer(decoded(match[5]), match[1]).reshape(shape)
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
