"""Files of torch.save: SGLang's expert distribution recorder, slime's rollouts. Never unpickled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError, MissingExtraError
from moeprof.trace.formats.block import (
    Block,
    CountTable,
    Findings,
    Format,
    Head,
    Import,
    Options,
    file_by_file,
    sequence_block,
    whole,
)
from moeprof.trace.formats.reading import reading
from moeprof.trace.formats.responses import native_layers, only_moe
from moeprof.trace.rows import Phase, Request

_PREFILL_MODES, _DECODE_MODES = (1, 3), (2,)  # ForwardMode: EXTEND and MIXED; DECODE
EMPTY_STEP = "empty step of the circular buffer"


def load(path: Path) -> Any:
    """What torch.save wrote, if it is tensors and plain containers alone. InputError otherwise."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "capture") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what is no file of torch, which is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of what a damaged file makes torch raise there is no list
        reason = str(error).split("\n", 1)[0][:160]
        raise InputError(f"{path}: cannot be loaded safely: {reason}") from None


def _strings(head: Head) -> bytes:
    """The start of an archive of torch, where the keys of the outer dictionary stand."""
    is_torch = any(name.endswith("data.pkl") for name in head.names)
    return head.data if is_torch else b""


def detect_counts(head: Head) -> bool:
    """A torch archive with `logical_count`."""
    return b"logical_count" in _strings(head)


def read_counts(paths: Sequence[Path], options: Options) -> Import:
    """Modes `stat` and `stat_approx`: steps in no known order, for the buffer is circular."""
    return Import(counts=lambda found: _read_counts(paths, found))


def _read_counts(paths: Sequence[Path], found: Findings) -> CountTable:
    parts = []
    for path in paths:
        with reading(path, "SGLang stat"):
            counts = load(path)["logical_count"].numpy().astype(np.int64)
            counts = counts[None] if counts.ndim == 2 else counts
            filled = counts.any(axis=(1, 2))
            found.skip(EMPTY_STEP, int((~filled).sum()))
            parts.append(counts[filled])
    counts = np.concatenate(parts)
    found.note("the buffer of steps is circular: the order of windows is not that of time")
    used = np.flatnonzero(counts.any(axis=(0, 2)))
    return CountTable(tuple(used.tolist()), counts[:, used])


def detect_lmdeploy(head: Head) -> bool:
    """A torch archive with `counts` and `balancedness`."""
    return all(key in _strings(head) for key in (b"counts", b"balancedness"))


def read_lmdeploy(paths: Sequence[Path], options: Options) -> Import:
    """LMDeploy's ExpertsDistributionRecorder: counts since the start, so the last dump has all."""
    return Import(counts=lambda found: _read_lmdeploy(paths, found))


def _read_lmdeploy(paths: Sequence[Path], found: Findings) -> CountTable:
    dumps = []
    for path in paths:
        with reading(path, "LMDeploy expert counts"):
            saved = load(path)
            counts = saved["counts"].numpy().astype(np.int64)
            if counts.ndim != 2 or counts.min(initial=0) < 0:
                raise ValueError(f"counts are {counts.shape}, not [layers, experts]")
            dumps.append((int(saved["step"]), counts))
    if len({counts.shape for _, counts in dumps}) != 1:
        raise InputError(f"{paths[0]} and the others differ in layers or experts")
    ordered = np.stack([counts for _, counts in sorted(dumps, key=lambda dump: dump[0])])
    windows = np.diff(ordered, axis=0, prepend=0)
    if windows.min(initial=0) < 0:
        found.note("counts fall from one dump to the next: each is a window of its own")
        windows = ordered
    found.engine = "lmdeploy"
    found.note("MoE layers are counted from 0; --model names native ones")
    return CountTable(tuple(range(ordered.shape[1])), windows)


def detect_passes(head: Head) -> bool:
    """A torch archive with `last_physical_to_logical_map`."""
    return b"last_physical_to_logical_map" in head.data or b"global_physical_count" in _strings(
        head
    )


def read_passes(paths: Sequence[Path], options: Options) -> Import:
    """Modes `per_pass` (counts) and `per_token`, which the records themselves tell apart."""
    with reading(paths[0], "SGLang recorder"):
        records = load(paths[0])["records"]
        tokens = bool(records) and "topk_ids_of_layer" in records[0]
    if tokens:
        return file_by_file(paths, lambda path, found: _read_tokens(path, found, options))
    return Import(counts=lambda found: _read_passes(paths, found))


def _read_passes(paths: Sequence[Path], found: Findings) -> CountTable:
    parts = []
    for path in paths:
        with reading(path, "SGLang per_pass"):
            saved = load(path)
            to_logical = saved["last_physical_to_logical_map"].numpy()
            physical = [r["global_physical_count"].numpy() for r in saved["records"]]
            parts.append(_logical_counts(np.stack(physical), to_logical))
    if len(paths) > 1:
        found.note("files of several ranks: one after the other, their passes are not joined")
    counts = np.concatenate(parts)
    used = np.flatnonzero(counts.any(axis=(0, 2)))
    return CountTable(tuple(used.tolist()), counts[:, used])


def _logical_counts(
    physical: NDArray[np.integer[Any]], to_logical: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[passes, layers, physical] as [passes, layers, logical], replicas added up."""
    if physical.shape[1:] != to_logical.shape or to_logical.min() < 0:
        raise ValueError(f"counts of {physical.shape}, a map of {to_logical.shape}")
    counts = np.zeros((*physical.shape[:2], int(to_logical.max()) + 1), np.int64)
    for layer, ids in enumerate(to_logical):
        np.add.at(counts[:, layer].T, ids, physical[:, layer].T)
    return counts


def _read_tokens(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    """Records of passes; physical ids become logical by the map in the file."""
    with reading(path, "SGLang per_token"):
        saved = load(path)
        to_logical = saved["last_physical_to_logical_map"].numpy()
        found.engine, found.experts = "sglang", int(to_logical.max()) + 1
        found.note(
            "ids are mapped to logical ones by the last map in the file, which is wrong for passes "
            "before a rebalancing; requests are not named"
        )
        for step, record in enumerate(saved["records"]):
            yield _pass_block(record, step, to_logical, options)


def _pass_block(
    record: dict[str, Any], step: int, to_logical: NDArray[np.int64], options: Options
) -> Block:
    physical = record["topk_ids_of_layer"].numpy().swapaxes(0, 1)  # [tokens, layers, 8]
    k = options.top_k or max(1, int((physical >= 0).sum(axis=2).max(initial=1)))
    physical = physical[:, :, :k]
    layer = np.arange(physical.shape[1])[None, :, None]
    logical = np.where(physical < 0, -1, to_logical[layer, np.maximum(physical, 0)])
    tokens = len(logical)
    mode = int(record.get("forward_mode", -1))
    phase = Phase.DECODE if mode in _DECODE_MODES else Phase.UNKNOWN
    phase = Phase.PREFILL if mode == _PREFILL_MODES[0] else phase
    return Block(
        tuple(range(logical.shape[1])),
        logical.astype(np.int32),
        step=np.full(tokens, step, np.int64),
        request=np.full(tokens, -1, np.int32),
        position=whole(np.array(record["positions"][:tokens])),
        phase=np.full(tokens, phase, np.int8),
        token_id=whole(np.array(record["input_ids"][:tokens])),
    )


def detect_slime(head: Head) -> bool:
    """A torch archive with `rollout_routed_experts`."""
    return b"rollout_routed_experts" in _strings(head)


def read_slime(paths: Sequence[Path], options: Options) -> Import:
    """Every sample of a rollout is a request."""
    return file_by_file(paths, lambda path, found: _read_slime(path, found, options))


def _read_slime(path: Path, found: Findings, options: Options) -> Iterator[Block]:
    with reading(path, "slime rollout"):
        step = request = 0
        for sample in load(path)["samples"]:
            routed = sample.get("rollout_routed_experts")
            if routed is None:
                found.skip("sample without rollout_routed_experts")
                continue
            experts = np.asarray(routed.numpy() if hasattr(routed, "numpy") else routed)
            tokens = sample["tokens"]
            prompt = len(tokens) - int(sample["response_length"])
            found.requests.append(Request(request, None, None, prompt, len(tokens) - prompt))
            found.note("batches are not in the file: steps are those of each sample served alone")
            block = sequence_block(
                experts, native_layers(experts.shape[1], options, found), request=request,
                step=step, prompt=prompt, token_id=whole(np.array(tokens[: len(experts)])),
            )  # fmt: skip
            request, step = request + 1, int(block.step[-1]) + 1 if len(block) else step
            yield only_moe(block, options)


COUNTS_FORMAT = Format(
    "sglang-stat", "SGLang recorder, modes stat and stat_approx", detect_counts, read_counts
)
PASSES_FORMAT = Format(
    "sglang-recorder", "SGLang recorder, modes per_pass and per_token", detect_passes, read_passes
)
SLIME_FORMAT = Format("slime", "slime debug rollouts", detect_slime, read_slime)
LMDEPLOY_FORMAT = Format(
    "lmdeploy", "LMDeploy's expert distribution .pt", detect_lmdeploy, read_lmdeploy
)
