"""Routing logs in JSON lines, a line for each layer of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moeprof.errors import InputError
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import Block, Findings, Format, Head, Import, Options, file_by_file
from moeprof.trace.formats.json_lines import (
    flat_values,
    json_pieces,
    meta_line,
    object_of,
    stated_numbers,
)
from moeprof.trace.formats.reading import reading
from moeprof.trace.rows import Phase

_VLLM_SCHEMA = pa.schema(
    {
        "token_idx": pa.int64(),
        "layer": pa.int32(),
        "topk_ids": pa.list_(pa.int32()),
        "topk_weights": pa.list_(pa.float32()),
    }
)


def detect_vllm(head: Head) -> bool:
    """A first line of type `meta` or `route`, with what those have."""
    first = object_of(head.first_line)
    return first.get("type") in ("meta", "route") and bool(
        {"layers_logged", "topk_ids"} & set(first)
    )


def read_vllm(paths: Sequence[Path], options: Options) -> Import:
    """`token_idx` restarts with every forward pass, so it gives the steps and no sequence."""
    return file_by_file(paths, _read_vllm)


def _read_vllm(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "vLLM route log"):
        meta = meta_line(path, "topk_ids")
        found.model, found.engine = str(meta.get("model_id", "")), "vllm"
        found.engine_version = str(meta.get("vllm_version", ""))
        found.rank_ordered = None
        found.note(
            "token_idx restarts in every forward pass and req_id does not tell requests apart: "
            "steps are kept, request and position are not known"
        )
        yield from assemble(_vllm_pieces(path, found, bool(meta)), found)


def _vllm_pieces(path: Path, found: Findings, has_meta: bool) -> Iterator[LayerRows]:
    step, last = 0, -1
    for table in json_pieces(path, _VLLM_SCHEMA, found, skip=int(has_meta)):
        routed = table.filter(pc.is_valid(table.column("topk_ids")))
        found.skip("line that is no route", len(table) - len(routed))
        if not len(routed):
            continue
        index = stated_numbers(path, routed, "token_idx")
        before = np.concatenate([[last], index[:-1]])
        steps = step + np.cumsum(index < before)
        step, last = int(steps[-1]), int(index[-1])
        weights = routed.column("topk_weights")
        yield LayerRows(
            layer=stated_numbers(path, routed, "layer"),
            experts=flat_values(path, routed.column("topk_ids")),
            step=steps,
            weights=None if weights.null_count else flat_values(path, weights),
        )


_LAB = "moe-cache-lab.routing-jsonl"
_LAB_SCHEMA = pa.schema(
    {
        "record_type": pa.string(),
        "phase": pa.string(),
        "layer": pa.int32(),
        "token_position": pa.int64(),
        "token_id": pa.int32(),
        "selected_experts": pa.list_(pa.int32()),
        "selected_probabilities": pa.list_(pa.float32()),
    }
)
_LAB_PHASES = {
    "prompt": Phase.PREFILL,
    "generated": Phase.DECODE,
    "decoder_prompt": Phase.PREFILL,
    "decoder_generated": Phase.DECODE,
}


def detect_lab(head: Head) -> bool:
    """A first line with the name of the format."""
    return object_of(head.first_line).get("format") == _LAB


def read_lab(paths: Sequence[Path], options: Options) -> Import:
    """One file a request."""
    return file_by_file(paths, _read_lab)


def _read_lab(path: Path, found: Findings) -> Iterator[Block]:
    with reading(path, "moe-cache-lab"):
        meta = meta_line(path, "selected_experts")
        stages = meta.get("routing_stages", [])
        decoder = next((s for s in stages if s.get("routing_stage") == "decoder"), meta)
        found.experts, found.model = int(decoder["num_experts"]), str(meta.get("model_id", ""))
        yield from assemble(_lab_pieces(path, found), found, drop_cut=False)


def _lab_pieces(path: Path, found: Findings) -> Iterator[LayerRows]:
    for table in json_pieces(path, _LAB_SCHEMA, found, skip=1):
        phases = table.column("phase").to_numpy()
        known = np.isin(phases.astype(str), list(_LAB_PHASES))
        lengths = pc.list_value_length(table.column("selected_experts")).fill_null(0)
        assigned = lengths.to_numpy() > 0
        found.skip("selection of an encoder", int((~known).sum()))
        found.skip("token without an assigned expert", int((known & ~assigned).sum()))
        chosen = table.filter(pa.array(known & assigned))
        if not len(chosen):
            continue
        yield _lab_rows(path, chosen, phases[known & assigned])


def _lab_rows(path: Path, table: pa.Table, phases: np.ndarray) -> LayerRows:
    names, inverse = np.unique(phases.astype(str), return_inverse=True)
    ids = flat_values(path, table.column("selected_experts"))
    gates = table.column("selected_probabilities")
    given = pc.list_value_length(gates).fill_null(0).to_numpy()
    if given.any() and (given != ids.shape[1]).any():
        raise InputError(f"{path}: some selections have probabilities and others do not")
    token_id = table.column("token_id")
    return LayerRows(
        layer=stated_numbers(path, table, "layer"),
        experts=ids,
        request=np.zeros(len(ids), np.int32),
        position=stated_numbers(path, table, "token_position"),
        phase=np.array([_LAB_PHASES[name] for name in names], np.int8)[inverse],
        token_id=None if token_id.null_count else token_id.to_numpy(),
        weights=flat_values(path, gates) if given.any() else None,
    )


VLLM_FORMAT = Format(
    "vllm-route-log", "vLLM routing log, a JSON line a route", detect_vllm, read_vllm
)
LAB_FORMAT = Format("moe-cache-lab", "moe-cache-lab JSONL, versions 1 and 2", detect_lab, read_lab)
