"""All foreign formats, and which of them a file is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moeprof.errors import InputError
from moeprof.trace.formats import (
    colibri,
    count_files,
    documents,
    llamacpp,
    moe_trace_binary,
    numpy_files,
    plain_csv,
    plain_json,
    plain_parquet,
    responses,
    route_log,
    route_trace,
    tables,
    torch_files,
    training,
    trtllm,
)
from moeprof.trace.formats.block import Format
from moeprof.trace.formats.reading import read_head

# The first whose `detect` says yes is taken, so the particular stand before the general.
FORMATS: tuple[Format, ...] = (
    responses.VLLM_FORMAT,
    responses.NEMO_FORMAT,
    responses.SGLANG_FORMAT,
    torch_files.COUNTS_FORMAT,
    torch_files.PASSES_FORMAT,
    torch_files.SLIME_FORMAT,
    torch_files.LMDEPLOY_FORMAT,
    training.MEGATRON_FORMAT,
    training.FLAME_FORMAT,
    training.MOSL_FORMAT,
    plain_parquet.FORMAT,
    count_files.IMATRIX_FORMAT,
    trtllm.FORMAT,
    count_files.PROFILE_FORMAT,
    colibri.USAGE_FORMAT,
    colibri.TRACE_FORMAT,
    route_trace.ROUTE_FORMAT,
    llamacpp.RANKS_FORMAT,
    llamacpp.PAIRS_FORMAT,
    llamacpp.ROWS_FORMAT,
    route_log.VLLM_FORMAT,
    route_log.LAB_FORMAT,
    plain_json.DECODE_FORMAT,
    plain_json.FORMAT,
    documents.PROMPTS_FORMAT,
    documents.STEPS_FORMAT,
    moe_trace_binary.LAB_FORMAT,
    numpy_files.CELLS_FORMAT,
    numpy_files.FORMAT,
    tables.DECODE_FORMAT,
    tables.EVENTS_FORMAT,
    tables.GATES_FORMAT,
    count_files.LOAD_FORMAT,
    plain_csv.FORMAT,
    moe_trace_binary.BINARY_FORMAT,
)


def format_names() -> list[str]:
    """What `--format` takes."""
    return [known.name for known in FORMATS]


def choose_format(paths: Sequence[Path], name: str | None) -> Format:
    """The format called `name`, or the one that the first file shows. InputError if none."""
    heads = [read_head(path) for path in paths]
    if name is not None:
        for known in FORMATS:
            if known.name == name:
                return known
        raise InputError(f"format '{name}' is not one of {', '.join(format_names())}")
    chosen: Format | None = None
    for head in heads:
        found = next((known for known in FORMATS if known.detect(head)), None)
        if found is None:
            raise InputError(
                f"{head.path}: not a format that is known by its content; --format names one of "
                f"{', '.join(format_names())}"
            )
        if chosen is not None and found is not chosen:
            raise InputError(
                f"{head.path} is {found.name} and {paths[0]} is {chosen.name}: "
                "import them one by one, then merge"
            )
        chosen = found
    assert chosen is not None
    return chosen
