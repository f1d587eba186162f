"""A source that counts, as a trace that counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.counts import write_counts
from moeprof.trace.folder import drafted
from moeprof.trace.formats.block import CountTable, Findings, Import, Options
from moeprof.trace.formats.import_result import ImportResult
from moeprof.trace.formats.reading import reading
from moeprof.trace.formats.survey import bare_model


def import_counts(
    name: str,
    source: Import,
    path: Path,
    output: Path,
    known: MoEModel | None,
    options: Options,
    force: bool,
) -> ImportResult:
    """A source that counts becomes a trace that counts."""
    found = Findings()
    assert source.counts is not None
    with reading(path, name):
        table = source.counts(found)
    layers, counts = table.layers, table.counts
    if not counts.size or not layers:
        raise InputError(f"{path}: this {name} file holds no counts")
    model = known or _counted_model(path, table, options, found)
    wanted = (len(model.moe_layers), model.experts)
    if counts.shape[1:] != wanted:
        raise InputError(
            f"{path}: counts of {counts.shape[1]} layers x {counts.shape[2]} experts, "
            f"{model.name} has {wanted[0]} x {wanted[1]}"
        )
    with drafted(output, force) as draft:
        write_counts(draft, model, counts)
    found.note("this source only counts: the trace has no order of tokens")
    return ImportResult(
        path=str(output),
        format=name,
        tokens=_counted_tokens(counts, model.top_k),
        requests=0,
        layers=len(layers),
        experts=model.experts,
        top_k=model.top_k,
        counts_only=True,
        skipped=dict(found.skipped),
        notes=list(found.notes),
    )


def _counted_model(path: Path, table: CountTable, options: Options, found: Findings) -> MoEModel:
    top_k = options.top_k or found.top_k
    if top_k is None:
        raise InputError(f"{path}: counts do not say top-k; give --top-k or --model")
    experts = table.counts.shape[2]
    if top_k > experts:
        raise InputError(f"{path}: top-{top_k} does not go with {experts} experts")
    return bare_model(found.model or path.name.split(".")[0], table.layers, experts, top_k)


def _counted_tokens(counts: np.ndarray, top_k: int) -> int:
    """Tokens behind `counts` [windows, layers, experts]: assignments of the fullest layer / k."""
    return int(counts.sum(axis=(0, 2)).max()) // top_k
