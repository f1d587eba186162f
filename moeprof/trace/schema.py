"""The trace on disk: file names, Arrow schemas, and the manifest.

docs/trace-format.md describes the same in prose, for those who write or read it without us.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
)

from moeprof import __version__
from moeprof.errors import InputError, TraceError

SCHEMA = "moeprof.trace/1"
MANIFEST = "manifest.json"
SEGMENTS = "segments"
REQUESTS = "requests.arrows"
TELEMETRY = "telemetry.arrows"
COUNTS = "counts.arrows"
RANKS = "ranks"  # the folder of traces, where several ranks wrote one recording

FILE_MODE = 0o600  # expert ids reveal most of the text (arXiv 2602.04105)
FOLDER_MODE = 0o700

REQUEST_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("arrival_s", pa.float64()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
    ]
)
NAME_COLUMN = pa.field("name", pa.string())  # of a request, only if names were asked for
TELEMETRY_SCHEMA = pa.schema(
    [
        pa.field("time_s", pa.float64(), nullable=False),
        pa.field("device", pa.int32(), nullable=False),
        pa.field("gpu_utilization", pa.float32()),
        pa.field("memory_used_bytes", pa.int64()),
        pa.field("memory_total_bytes", pa.int64()),
        pa.field("power_w", pa.float32()),
        pa.field("temperature_c", pa.float32()),
        pa.field("sm_clock_mhz", pa.float32()),
    ]
)
COUNTS_SCHEMA = pa.schema(
    [
        pa.field("window", pa.int64(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("expert", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)

# Segments of a recording of counts: with phases, so that prefill and decode can be told apart.
AGGREGATE_SCHEMA = COUNTS_SCHEMA.append(pa.field("phase", pa.int8()))


def segment_file(number: int) -> str:
    """Path of segment `number` below the trace's folder."""
    return f"{SEGMENTS}/{number:06d}.arrows"


def segment_number(file: str) -> int:
    """The number that `segment_file` made `file` of; -1 for a name by someone else."""
    stem = PurePosixPath(file).stem
    return int(stem) if stem.isdecimal() else -1


def expert_dtype(experts: int) -> np.dtype[Any]:
    """The narrowest unsigned integer that holds ids below `experts`."""
    return np.dtype(np.uint8 if experts <= 256 else np.uint16)


def experts_column(layer: int) -> str:
    """Column of the chosen experts of native layer `layer`."""
    return f"experts.{layer}"


def weights_column(layer: int) -> str:
    """Column of the gate weights of native layer `layer`."""
    return f"weights.{layer}"


def margins_column(layer: int) -> str:
    """Column of the margins by which native layer `layer` chose."""
    return f"margins.{layer}"


def next_experts_column(layer: int) -> str:
    """Column of what the next layer's router makes of native layer `layer`'s hidden state."""
    return f"next_experts.{layer}"


def next_weights_column(layer: int) -> str:
    """Column of the gate weights that belong to `next_experts_column(layer)`."""
    return f"next_weights.{layer}"


def segment_schema(
    layers: Sequence[int],
    experts: int,
    top_k: int,
    *,
    weights: bool = False,
    token_ids: bool = False,
    margins: bool = False,
    next_layer: bool = False,
) -> pa.Schema:
    """One row a token, one fixed-size list a layer, and the optional columns behind them."""
    fields = [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("request", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("phase", pa.int8()),
    ]
    if token_ids:
        fields.append(pa.field("token_id", pa.int32()))
    ids = pa.list_(pa.field("item", pa.from_numpy_dtype(expert_dtype(experts)), False), top_k)
    gates = pa.list_(pa.field("item", pa.float16(), False), top_k)
    fields += [pa.field(experts_column(layer), ids) for layer in layers]
    if weights:
        fields += [pa.field(weights_column(layer), gates) for layer in layers]
    if margins:
        fields += [pa.field(margins_column(layer), pa.float16()) for layer in layers]
    if next_layer:
        fields += [pa.field(next_experts_column(layer), ids) for layer in layers[:-1]]
        fields += [pa.field(next_weights_column(layer), gates) for layer in layers[:-1]]
    return pa.schema(fields)


class RequestNames(StrEnum):
    """What stands in a request's `name`, from what tells least to what tells most."""

    NONE = "none"
    HASHED = "hashed"  # a keyed hash of the engine's id
    PLAIN = "plain"  # the engine's id

    @classmethod
    def parse(cls, name: str) -> RequestNames:
        """The kind called `name`. Raises InputError."""
        try:
            return cls(name)
        except ValueError:
            raise InputError(f"request_names '{name}' is not one of {', '.join(cls)}") from None


def request_schema(names: RequestNames) -> pa.Schema:
    """Columns of the requests: a trace without names has none for them."""
    return REQUEST_SCHEMA if names is RequestNames.NONE else REQUEST_SCHEMA.append(NAME_COLUMN)


class StoredFile(BaseModel):
    """A file of the trace that is closed: its length and checksum no longer change."""

    model_config = ConfigDict(extra="ignore")

    file: str  # below the trace's folder
    rows: NonNegativeInt
    bytes: NonNegativeInt
    crc32: str  # of the whole file, eight hexadecimal digits

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".arrows" or "\0" in file:
            raise ValueError(f"{file!r} is not an .arrows file of this folder")
        return file


class Sampling(BaseModel):
    """Each request was kept with probability `rate`, whatever became of the others."""

    model_config = ConfigDict(extra="ignore")

    rate: float = Field(gt=0, le=1)
    seed: int


class Manifest(BaseModel):
    """What the trace says of itself. Rewritten at the start and whenever a file is closed."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    schema_name: str = Field(alias="schema")
    moeprof: str
    # Unix time that arrival_s and time_s count from, up to the year 9999
    clock_base: float = Field(ge=0, le=253_402_300_799)
    model: dict[str, Any]
    layers: list[NonNegativeInt]  # native indices of the layers that were recorded
    experts: int = Field(ge=1, le=65_536)
    top_k: int = Field(ge=1, le=65_536)
    engine: str = ""
    engine_version: str = ""
    rank_ordered: bool | None = None  # is slot 0 the router's first choice? None: not known
    weights: bool = False
    token_ids: bool = False
    margins: bool = False
    next_layer: bool = False
    request_names: RequestNames = RequestNames.NONE
    complete: bool = False  # closed by its writer, not cut off
    tokens: NonNegativeInt = 0
    dropped: dict[str, NonNegativeInt] = {}  # tokens seen and not recorded, by reason
    rotated_tokens: NonNegativeInt = 0  # recorded, then let go to make room
    first_segment: NonNegativeInt = 0  # segments of lower numbers were let go
    ranks: dict[Literal["dp", "pp", "tp"], PositiveInt] = {}  # that write beside this one, in all
    aggregate_steps: PositiveInt | None = None  # segments count tokens per so many steps
    expert_bytes: dict[NonNegativeInt, PositiveInt] = {}  # of one expert by layer, as it ran
    sampling: Sampling | None = None  # None: every request was to be recorded
    requests_sampled_out: NonNegativeInt = 0
    tokens_sampled_out: NonNegativeInt = 0
    files: list[StoredFile] = []

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: list[int]) -> list[int]:
        if not layers or len(set(layers)) != len(layers):
            raise ValueError("must name at least one layer, and each once")
        return layers

    @property
    def segment_schema(self) -> pa.Schema:
        """The Arrow schema that every segment of this trace has."""
        if self.aggregate_steps is not None:
            return AGGREGATE_SCHEMA
        return segment_schema(
            self.layers,
            self.experts,
            self.top_k,
            weights=self.weights,
            token_ids=self.token_ids,
            margins=self.margins,
            next_layer=self.next_layer,
        )

    def stored(self, file: str) -> StoredFile | None:
        """What the manifest says of `file`, None while it is not closed."""
        return next((entry for entry in self.files if entry.file == file), None)

    def save(self, folder: Path) -> None:
        """Replace the manifest in one step: a reader sees the old one or the new one."""
        draft = folder / f"{MANIFEST}.tmp"
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "w") as out:
                out.write(self.model_dump_json(indent=1, by_alias=True) + "\n")
            os.replace(draft, folder / MANIFEST)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    @classmethod
    def make(cls, **values: Any) -> Manifest:
        """A manifest of this moeprof; TraceError names the first value that cannot be."""
        try:
            return cls(schema=SCHEMA, moeprof=__version__, **values)
        except ValidationError as error:
            raise TraceError(_first_problem(error)) from None

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of the trace in `folder`; TraceError says what is wrong with it."""
        path = folder / MANIFEST
        if path.exists() and not path.is_file():
            raise TraceError(f"{path}: is not a file")  # to read a FIFO would wait for ever
        try:
            manifest = cls.model_validate(json.loads(path.read_text()))
        except FileNotFoundError:
            raise TraceError(f"{folder}: not a trace, it has no {MANIFEST}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise TraceError(f"{path}: cannot be read as JSON: {error}") from None
        except ValidationError as error:
            raise TraceError(f"{path}: {_first_problem(error)}") from None
        if manifest.schema_name != SCHEMA:
            raise TraceError(
                f"{path}: schema is {manifest.schema_name!r}, this moeprof reads {SCHEMA!r}; "
                "a newer moeprof wrote it: pip install -U moeprof"
            )
        return manifest


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}"
