"""Recording a model that does not fit, layer by layer from its checkpoint: `capture stream`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.capture.layout import Layout
from moeprof.capture.prompts import Prompt, read_prompts
from moeprof.capture.result import check_numbers, check_output
from moeprof.capture.stream.checkpoint import StoredTensor, open_checkpoint
from moeprof.capture.stream.formats import FLOATS
from moeprof.capture.stream.layers import LayerStream, Places, Say, file_rows
from moeprof.capture.stream.needs import (
    Needs,
    available_memory,
    check_disk,
    forget_peak,
    resident_bytes,
)
from moeprof.capture.stream.quantized import decode_checkpoint, quantization_of
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.capture.stream.skeleton import Skeleton, build_skeleton
from moeprof.capture.stream.store import Store, held_bytes
from moeprof.capture.stream.writing import write_trace
from moeprof.capture.transformers.record import describe_config
from moeprof.capture.transformers.routers.finding import (
    UNFAITHFUL,
    RouterSite,
    find_router_sites,
)
from moeprof.capture.transformers.run import DTYPES, model_class, torch_threads
from moeprof.errors import InputError, MissingExtraError, MoeprofError
from moeprof.model import MoEModel
from moeprof.result import Result

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


@dataclass(frozen=True)
class _Opened:
    """A checkpoint and the model it is of."""

    skeleton: Skeleton
    described: MoEModel
    sites: dict[int, list[RouterSite]]
    places: Places
    signature: dict[str, Any]  # what must be the same for a run to go on


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
    `memory_bytes` bounds the process, or with CUDA what is taken of the
    GPU, and is nine tenths of what is free if None. `progress` is told, in sentences.

    Raises InputError for a checkpoint, prompts or output that cannot be used, InfeasibleError where
    memory or disk do not suffice, before any layer is read; MoeprofError where the disk fails.
    """
    check_numbers(threads=1 if threads is None else threads)
    wanted = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not wanted:
        raise InputError("there are no prompts")
    check_output(Path(output), force=force)
    base = resident_bytes()
    folder = Path(model_path)
    opened = open_model(folder, device, dtype, trust_remote_code=trust_remote_code)
    sequences = _tokenize(folder, opened, wanted, trust_remote_code=trust_remote_code)
    layout = Layout(len(opened.sites), opened.described.top_k, weights=weights, margins=margins)
    with torch_threads(threads):
        return stream_sequences(
            opened,
            sequences,
            Path(output),
            layout=layout,
            token_ids=token_ids,
            memory_bytes=memory_bytes,
            process_bytes=max(base, resident_bytes()),
            force=force,
            say=progress or (lambda line: None),
        )


def open_model(
    folder: Path, device: str | None, dtype: str, *, trust_remote_code: bool = False
) -> _Opened:
    """The checkpoint in `folder` and its model without weights. Raises InputError."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "capture") from None
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; stream reads a checkpoint on this machine")
    tensors = open_checkpoint(folder)
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    code = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        _check_config(folder, config)
        described = describe_config(config)
        kept_as = _dtype_of(config, tensors) if dtype == "auto" else getattr(torch, dtype)
        model = build_skeleton(config, model_class(config), kept_as, **code)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
        sites = find_router_sites(model, described.moe_layers, described.experts)
        places = Places.of(model, sites)
        decoded = decode_checkpoint(folder, tensors, quantization_of(config), kept_as)
        skeleton = Skeleton(model, decoded, kept_as, where)
    except MoeprofError:
        raise
    except Exception as error:  # whatever a model's files and its libraries may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: cannot be streamed: {reason[:300]}") from None
    signature = {
        "config": config.to_dict(),
        "files": _file_marks(tensors),
        "dtype": str(kept_as),
        "device": where.type,
        "transformers": transformers.__version__,
    }
    return _Opened(skeleton, described, sites, places, signature)


def stream_sequences(
    opened: _Opened,
    sequences: Sequence[TokenSequence],
    output: Path,
    *,
    layout: Layout,
    token_ids: bool,
    memory_bytes: int | None,
    process_bytes: int,
    force: bool,
    say: Say,
) -> StreamResult:
    """`stream` of sequences that are tokenized already."""
    tokens, longest = sum(map(len, sequences)), max(map(len, sequences))
    needs = _needs(opened, memory_bytes, process_bytes)
    needs.check(longest)
    rows = file_rows(len(opened.sites), layout)
    width = _hidden_bytes(opened)
    disk_bytes = tokens * (2 * width + len(opened.sites) * sum(rows.values()))
    output.parent.mkdir(parents=True, exist_ok=True)
    signature = _sign(opened.signature, sequences, layout)
    folder = output.with_name(f"{output.name}.stream")
    check_disk(output.parent, disk_bytes - held_bytes(folder))
    store = Store(folder, signature, rows, force=force)
    try:
        say(needs.describe(longest, disk_bytes))
        forget_peak()
        layers = LayerStream(
            opened.skeleton, opened.places, opened.sites, layout, sequences, needs, store, say
        )
        layers.run()
        path = write_trace(
            output,
            opened.described,
            list(opened.sites),
            layout,
            sequences,
            store,
            token_ids=token_ids,
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


def _check_config(folder: Path, config: Any) -> None:
    """Refuse what would be read wrongly, by name."""
    for part in (config, config.get_text_config()):
        if part.model_type in UNFAITHFUL:
            why = UNFAITHFUL[part.model_type]
            raise InputError(f"{part.model_type} cannot be recorded: {why}")
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{folder}: is an encoder-decoder; record decoder-only models")


def _dtype_of(config: Any, tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """As the configuration says, or as the checkpoint's largest tensor that is not quantized."""
    import torch
    from safetensors.torch import _TYPES

    for part in (config, config.get_text_config()):
        said = getattr(part, "dtype", None)
        if isinstance(said, torch.dtype):
            return said
    plain = [tensor for tensor in tensors.values() if tensor.dtype in FLOATS]
    if not plain:
        return torch.bfloat16
    largest = max(plain, key=lambda tensor: tensor.nbytes)
    found: torch.dtype = _TYPES[largest.dtype]
    return found


def _file_marks(tensors: Mapping[str, StoredTensor]) -> list[tuple[str, int, int]]:
    files = sorted({tensor.file for tensor in tensors.values()})
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _sign(known: Mapping[str, Any], sequences: Iterable[TokenSequence], layout: Layout) -> str:
    """A hash of all that the files of a run follow from."""
    text = json.dumps([known, layout.weights, layout.margins], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for sequence in sequences:
        digest.update(f"{len(sequence)} {sequence.prompt_tokens};".encode())
        digest.update(sequence.ids.tobytes())
    return digest.hexdigest()


def _tokenize(
    folder: Path, opened: _Opened, prompts: Sequence[Prompt], *, trust_remote_code: bool
) -> list[TokenSequence]:
    """Token ids of every prompt and completion. InputError where one is empty or too long."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {reason[:300]}") from None
    most = getattr(opened.skeleton.model.config.get_text_config(), "max_position_embeddings", None)
    sequences = []
    for prompt in prompts:
        asked = tokenizer(prompt.text)["input_ids"]
        answered = []
        if prompt.completion:
            answered = tokenizer(prompt.completion, add_special_tokens=False)["input_ids"]
        sequence = TokenSequence.of(asked, answered, prompt.label)
        if not asked:
            raise InputError(f"{prompt.place}: has no tokens in this model's vocabulary")
        if most is not None and len(sequence) > most:
            raise InputError(
                f"{prompt.place}: {len(sequence)} tokens exceed the model's {most} positions: "
                "shorten it"
            )
        sequences.append(sequence)
    config = opened.skeleton.model.config
    names = (f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index"))
    others = [token for name in names if (token := getattr(config, name, None)) is not None]
    for prompt, sequence in zip(prompts, sequences, strict=True):
        if np.isin(sequence.ids, others).any():
            raise InputError(f"{prompt.place}: holds image tokens; stream takes text alone")
    return sequences


def _needs(opened: _Opened, memory_bytes: int | None, process_bytes: int) -> Needs:
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
    )


def _activations(opened: _Opened) -> tuple[int, int]:
    """Bytes a token and a pair of tokens, a generous estimate in float32.

    A token is held some times over in the widths of the layer's matrices, those of experts once for
    each of its k. A pair has a score, a mask and a probability for every head.
    """
    skeleton, places = opened.skeleton, opened.places
    part = skeleton.model.get_submodule(places.layer(places.last))
    shapes = [tuple(parameter.shape) for parameter in part.parameters()]
    plain = max((max(shape) for shape in shapes if len(shape) == 2), default=0)
    fused = max((max(shape[1:]) for shape in shapes if len(shape) == 3), default=0)
    config = skeleton.model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    wide = _hidden_bytes(opened) * 2 + 4 * (4 * plain + 4 * opened.described.top_k * fused)
    return wide, 3 * 4 * heads


def _hidden_bytes(opened: _Opened) -> int:
    """Of one token between two layers."""
    config = opened.skeleton.model.config.get_text_config()
    return int(config.hidden_size) * 4


def _peak(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resident_bytes("VmHWM")
