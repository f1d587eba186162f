"""Recording a model that does not fit, layer by layer from its checkpoint: `capture stream`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.layout import Layout
from moeprof.capture.prompts import Prompt, read_prompts
from moeprof.capture.result import check_numbers, check_output
from moeprof.capture.stream.chunks import plan_chunks
from moeprof.capture.stream.layers import LayerStream, Say, file_rows
from moeprof.capture.stream.needs import (
    Needs,
    available_memory,
    check_disk,
    forget_peak,
    resident_bytes,
)
from moeprof.capture.stream.opening import OpenedModel, open_model
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.capture.stream.store import Store, held_bytes
from moeprof.capture.stream.tokenizing import tokenize
from moeprof.capture.stream.writing import write_trace
from moeprof.capture.transformers.run import torch_threads
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace.schema import RequestNames

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StreamResult(Result):
    """What a streamed recording holds, and what it took."""

    path: str
    model: str
    requests: int
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    layers: int  # decoder layers that were read and run
    bytes_read: int  # of the checkpoint, in this run
    peak_memory_bytes: int  # of the process, or of the GPU where one computes


def stream(
    model_path: str | Path,
    prompts: str | Path | Sequence[Prompt],
    output: str | Path,
    *,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    memory_bytes: int | None = None,
    weights: bool = False,
    token_ids: bool = False,
    margins: bool = False,
    batch_size: int | None = None,
    request_names: str = "hashed",
    trust_remote_code: bool = False,
    force: bool = False,
    progress: Say | None = None,
) -> StreamResult:
    """Record what the model in folder `model_path` routes for given text, one layer in memory.

    `prompts` is a file (see `read_prompts`) or what it holds. A prompt is prefill; a `completion`
    that it has is fed as if the model had generated it, and labelled decode. `output` becomes
    the trace: rows, steps and positions are as of an engine that serves the requests one by one.
    Hidden states and routing lie in the folder `output`.stream until then; a run that was
    interrupted goes on with the layer it was at when it is called the same way again. `device` is
    CUDA where there is one; `threads` are those of torch on the CPU, its own choice if None.
    At most `batch_size` texts of equal length run through a layer together, as many as fit if None;
    with 1 every sum is the model's own. `request_names` says what the trace keeps of a prompt's
    `name`: hashed, plain or none. `memory_bytes` bounds the process, or with CUDA what is taken of
    the GPU, and is nine tenths of what is free if None. `progress` is told, in sentences.

    Raises InputError for a checkpoint, prompts or output that cannot be used, InfeasibleError where
    memory or disk do not suffice, before any layer is read; MoeprofError where the disk fails.
    """
    check_numbers(threads=1 if threads is None else threads)
    check_numbers(batch_size=1 if batch_size is None else batch_size)
    RequestNames.parse(request_names)
    wanted = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not wanted:
        raise InputError("there are no prompts")
    check_output(Path(output), force=force)
    base = resident_bytes()
    folder = Path(model_path)
    opened = open_model(folder, device, dtype, trust_remote_code=trust_remote_code)
    config = opened.skeleton.model.config
    sequences = tokenize(folder, config, wanted, trust_remote_code=trust_remote_code)
    layout = Layout(len(opened.sites), opened.described.top_k, weights=weights, margins=margins)
    with torch_threads(threads):
        return stream_sequences(
            opened,
            sequences,
            Path(output),
            layout=layout,
            token_ids=token_ids,
            request_names=request_names,
            batch_size=batch_size,
            memory_bytes=memory_bytes,
            process_bytes=max(base, resident_bytes()),
            force=force,
            say=progress or (lambda line: None),
        )


def stream_sequences(
    opened: OpenedModel,
    sequences: Sequence[TokenSequence],
    output: Path,
    *,
    layout: Layout,
    token_ids: bool,
    request_names: str,
    batch_size: int | None,
    memory_bytes: int | None,
    process_bytes: int,
    force: bool,
    say: Say,
) -> StreamResult:
    """`stream` of sequences that are tokenized already."""
    tokens, longest = sum(map(len, sequences)), max(map(len, sequences))
    needs = _needs(opened, memory_bytes, process_bytes, batch_size)
    chunks = plan_chunks(needs, longest, opened, _expert_bytes(opened))
    rows = file_rows(len(opened.sites), layout)
    width = _hidden_bytes(opened)
    disk_bytes = tokens * (2 * width + len(opened.sites) * sum(rows.values()))
    output.parent.mkdir(parents=True, exist_ok=True)
    signature = _sign({**opened.signature, "batch_size": batch_size}, sequences, layout)
    folder = output.with_name(f"{output.name}.stream")
    check_disk(output.parent, disk_bytes - held_bytes(folder))
    store = Store(folder, signature, rows, force=force)
    try:
        say(chunks.describe(disk_bytes))
        _forget_peak(opened.skeleton.device)
        layers = LayerStream(opened, layout, sequences, chunks, store, say)
        layers.run()
        path = write_trace(
            output,
            opened.described,
            list(opened.sites),
            layout,
            sequences,
            store,
            token_ids=token_ids,
            request_names=request_names,
            force=force,
        )
    finally:
        store.close()
    store.remove()
    prefill = sum(sequence.prompt_tokens for sequence in sequences)
    return StreamResult(
        path=str(path),
        model=opened.described.name,
        requests=len(sequences),
        tokens=tokens,
        prefill_tokens=prefill,
        decode_tokens=tokens - prefill,
        layers=opened.places.last + 1,
        bytes_read=layers.bytes_read,
        peak_memory_bytes=_peak(opened.skeleton.device),
    )


def _sign(known: Mapping[str, Any], sequences: Iterable[TokenSequence], layout: Layout) -> str:
    """A hash of all that the files of a run follow from."""
    text = json.dumps([known, layout.weights, layout.margins], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for sequence in sequences:
        digest.update(f"{len(sequence)} {sequence.prompt_tokens};".encode())
        digest.update(sequence.ids.tobytes())
    return digest.hexdigest()


def _needs(
    opened: OpenedModel, memory_bytes: int | None, process_bytes: int, batch_size: int | None
) -> Needs:
    import torch

    skeleton, places = opened.skeleton, opened.places
    on_gpu = skeleton.device.type == "cuda"
    if memory_bytes is None:
        free = torch.cuda.mem_get_info(skeleton.device)[0] if on_gpu else available_memory()
        memory_bytes = free * 9 // 10 + (0 if on_gpu else process_bytes)
    token_bytes, pair_bytes = _activations(opened)
    frame = skeleton.part(places.text, but=places.layers)
    layers = [skeleton.part(places.layer(index)) for index in range(places.last + 1)]
    return Needs(
        process_bytes=0 if on_gpu else process_bytes,
        frame_bytes=skeleton.nbytes(places.text, but=places.layers),
        layer_bytes=max(skeleton.nbytes(part.prefix) for part in layers),
        reading_bytes=max(part.reading_bytes for part in (frame, *layers)),
        stored_bytes=max(part.stored_bytes for part in layers),
        host_bytes=available_memory() if on_gpu else 0,
        token_bytes=token_bytes,
        pair_bytes=pair_bytes,
        budget_bytes=memory_bytes,
        batch_size=batch_size,
    )


def _activations(opened: OpenedModel) -> tuple[int, int]:
    """Bytes a token and a pair of tokens of a text that runs whole, a generous estimate in float32.

    A token is held some times over in the widths of the layer's matrices. A pair has a score, a
    mask and a probability for every head, and some have copies of them.
    """
    plain = max((max(shape) for shape in _shapes(opened) if len(shape) == 2), default=0)
    heads = int(getattr(opened.text_config, "num_attention_heads", 1) or 1)
    wide = _hidden_bytes(opened) * 2 + 4 * 4 * plain + _expert_bytes(opened)
    return wide, 6 * 4 * heads


def _expert_bytes(opened: OpenedModel) -> int:
    """Of a token in its k experts: some copies in the widest of their matrices, in float32."""
    fused = max((max(shape[1:]) for shape in _shapes(opened) if len(shape) == 3), default=0)
    return 4 * 4 * opened.described.top_k * fused


def _shapes(opened: OpenedModel) -> list[tuple[int, ...]]:
    part = opened.skeleton.model.get_submodule(opened.places.layer(opened.places.last))
    return [tuple(parameter.shape) for parameter in part.parameters()]


def _hidden_bytes(opened: OpenedModel) -> int:
    """Of one token between two layers."""
    return int(opened.text_config.hidden_size) * 4


def _forget_peak(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()


def _peak(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resident_bytes("VmHWM")
