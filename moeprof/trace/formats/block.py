"""What every reader of a foreign format yields, and what it notes on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.rows import Phase, Request

CUT = "token cut off at the end of the file"
CUT_LINE = "line cut off at the end of the file"
UNKNOWN = -1  # request, position or token id that the file does not state


@dataclass(frozen=True)
class Block:
    """Consecutive tokens as a file states them. T tokens, L layers, k experts a token.

    Steps never decrease within a file. `request` and `position` are -1 where nobody stated them.
    """

    layers: tuple[int, ...]  # native indices, ascending
    experts: NDArray[np.integer[Any]]  # [T, L, k]; a place with a negative id was not recorded
    step: NDArray[np.int64]  # [T]
    request: NDArray[np.int32]  # [T]
    position: NDArray[np.int32]  # [T]
    phase: NDArray[np.int8]  # [T] of Phase
    weights: NDArray[np.floating[Any]] | None = None  # [T, L, k]
    token_id: NDArray[np.int32] | None = None  # [T]

    def __post_init__(self) -> None:
        shape = self.experts.shape
        if len(shape) != 3 or shape[1] != len(self.layers) or min(shape[1:]) < 1:
            raise ValueError(f"experts are {shape}, not [tokens, {len(self.layers)} layers, k]")
        for name in ("step", "request", "position", "phase", "token_id"):
            values = getattr(self, name)
            if values is not None and values.shape != shape[:1]:
                raise ValueError(f"{name} is {values.shape}, not [{shape[0]} tokens]")
        if self.weights is not None and self.weights.shape != shape:
            raise ValueError(f"weights are {self.weights.shape}, experts {shape}")

    def __len__(self) -> int:
        return len(self.step)

    @property
    def nbytes(self) -> int:
        """Memory that the block holds, near enough."""
        weights = 0 if self.weights is None else self.weights.nbytes
        return int(self.experts.nbytes + weights + 24 * len(self))


@dataclass
class Findings:
    """What a reader learned beside the rows: one for each time a file is read."""

    experts: int | None = None  # experts of a layer, where the file states it
    top_k: int | None = None
    rank_ordered: bool | None = None
    model: str = ""
    engine: str = ""
    engine_version: str = ""
    skipped: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)  # an ordered set of sentences
    requests: list[Request] = field(default_factory=list)
    expert_bytes: dict[int, int] = field(default_factory=dict)  # of one, by layer of the file

    def note(self, sentence: str) -> None:
        """Something the user should know; said once however often it is noted."""
        self.notes[sentence] = None

    def skip(self, reason: str, count: int = 1) -> None:
        """Count what is left out."""
        if count:
            self.skipped[reason] += int(count)


@dataclass(frozen=True)
class CountTable:
    """Tokens per expert, of a source that keeps no order."""

    layers: tuple[int, ...]
    counts: NDArray[np.int64]  # [windows, layers, experts]


@dataclass(frozen=True)
class Options:
    """What the user says that the file does not."""

    layers: int | None = None  # decoder layers, dense ones included
    experts: int | None = None
    top_k: int | None = None
    moe_layers: tuple[int, ...] | None = None  # native indices


@dataclass(frozen=True)
class Import:
    """A foreign file, opened: rows that can be read more than once, or counts."""

    blocks: Callable[[Findings], Iterator[Block]] | None = None
    counts: Callable[[Findings], CountTable] | None = None


@dataclass(frozen=True)
class Head:
    """The start of a file, decompressed: what detection looks at."""

    path: Path
    data: bytes
    names: tuple[str, ...] = ()  # files of a folder, or members of an .npz

    @cached_property
    def text(self) -> str:
        """The start as text, '' where it is none."""
        if b"\0" in self.data:
            return ""
        return self.data.decode("utf-8", errors="ignore").lstrip("\ufeff")

    @property
    def first_line(self) -> str:
        """The first line without its end."""
        return self.text.split("\n", 1)[0].strip()


@dataclass(frozen=True)
class Format:
    """One foreign format: its name, what it is, how it is recognised and read."""

    name: str
    title: str
    detect: Callable[[Head], bool]
    read: Callable[[Sequence[Path], Options], Import]


def unknown(tokens: int) -> NDArray[np.int32]:
    """[tokens] of 'the file does not say'."""
    return np.full(tokens, UNKNOWN, np.int32)


def whole(values: NDArray[Any], dtype: Any = np.int32) -> NDArray[Any]:
    """Integers in a narrower type. ValueError if they are none, or do not fit."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{values.dtype} where integers must be")
    limits = np.iinfo(dtype)
    if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
        raise ValueError(f"{values.max()} or {values.min()} is no number of {limits.bits} bits")
    return values.astype(dtype, copy=False)


def sequence_block(
    experts: NDArray[np.integer[Any]],
    layers: Sequence[int],
    *,
    request: int,
    step: int = 0,
    prompt: int | None = None,
    start: int = 0,
    weights: NDArray[np.floating[Any]] | None = None,
    token_id: NDArray[np.int32] | None = None,
) -> Block:
    """One request in order, as if it had been served alone.

    Its `prompt` tokens, of which the first `start` are not here, are one step and each later token
    is one. Without `prompt` the phase stays unknown and every token is a step.
    """
    tokens = len(experts)
    position = np.arange(start, start + tokens)
    decode = np.ones(tokens, bool) if prompt is None else position >= prompt
    first = np.zeros(tokens, bool)
    first[:1] = True
    phase = np.full(tokens, Phase.UNKNOWN, np.int8)
    if prompt is not None:
        phase = decode.astype(np.int8)
    return Block(
        tuple(layers),
        experts,
        step=step + np.cumsum(decode | first).astype(np.int64) - 1,
        request=np.full(tokens, request, np.int32),
        position=position.astype(np.int32),
        phase=phase,
        weights=weights,
        token_id=token_id,
    )


def file_by_file(
    paths: Sequence[Path], read: Callable[[Path, Findings], Iterator[Block]]
) -> Import:
    """Several files as one import: steps and requests of each go on where the last ended."""

    def blocks(found: Findings) -> Iterator[Block]:
        step = request = 0
        for path in paths:
            of_file = Findings()
            last_step = last_request = -1
            for block in read(path, of_file):
                if len(block):
                    last_step = max(last_step, int(block.step[-1]))
                    last_request = max(last_request, int(block.request.max()))
                yield _shifted(block, step, request)
            last_request = max([last_request, *(r.index for r in of_file.requests)])
            _merge(found, of_file, request)
            step, request = step + last_step + 1, request + last_request + 1

    return Import(blocks=blocks)


def _shifted(block: Block, step: int, request: int) -> Block:
    known = np.where(block.request < 0, block.request, block.request + np.int32(request))
    return replace(block, step=block.step + step, request=known.astype(np.int32))


def _merge(found: Findings, other: Findings, request: int) -> None:
    """Take what one file said into what all files said."""
    for name in ("experts", "top_k", "rank_ordered"):
        if getattr(other, name) is not None:
            setattr(found, name, getattr(other, name))
    for name in ("model", "engine", "engine_version"):
        setattr(found, name, getattr(other, name) or getattr(found, name))
    found.expert_bytes |= other.expert_bytes
    found.skipped += other.skipped
    found.notes |= other.notes
    found.requests += [replace(r, index=r.index + request) for r in other.requests]
