"""The measured tables: 900 cells of one (hardware, engine, kernel, format, TP, EP), M3's shape.

A cell is timed at 23 token counts with three routings, and is read not by the routing's name but by
what it makes a rank do: the experts it reads and its rows (`timed_routings.py`). So any routing can
be priced. What a cell adds to the law is the logarithm of measured over predicted at each point;
between points it is linear in the logarithm of tokens, and at one token count an average over the
three routings, weighted by their nearness in distinct experts and load.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moeprof.projection.moe_kernels.work import M3_SHAPE, Floats, RankWork

DATA = Path(__file__).parent / "data"
ROUTINGS = ("balanced", "power_law_1.01", "power_law_1.2")
TIMED_TOKENS = (
    *(1, 2, 4, 8, 16, 32, 64, 80, 96, 128, 192, 256, 320, 384, 512, 768),
    *(1024, 2048, 3072, 4096, 8192, 12288, 16384),
)
GROUP = ("hardware", "engine", "kernel", "dtype")
CELL = (*GROUP, "tp", "ep")

# A kernel is timed over and over on the same weights. Where these fit the level 2 cache of a GPU
# with slow memory (datasheets: 96 and 128 MiB), they are read some three times faster, which no
# model of many layers sees. On Hopper and Blackwell with HBM the tables show no such step.
_CACHE_BYTES = {"l40s": 96 * 2.0**20, "rtx-pro-6000": 128 * 2.0**20}
_SAVED = 2 / 3  # of the reading time
_EDGE = 12  # how sharply it ends
_NEAR = 0.003  # squared distance below which all routings count alike

Group = tuple[str, str, str, str]  # hardware, engine, kernel, dtype


class TimedCells(NamedTuple):
    """Cells of one group: `tp`, `ep` [cells], `seconds` [cells, tokens, routings]."""

    tp: Floats
    ep: Floats
    seconds: Floats


def seconds_table_file() -> Path:
    """Where the timings are."""
    return DATA / "m3_kernel_seconds.parquet"


def routing_table_file() -> Path:
    """Where the timed routings' distinct experts and loads are."""
    return DATA / "timed_routings.parquet"


@cache
def timed_cells() -> dict[Group, TimedCells]:
    """All cells by group."""
    table = _read(seconds_table_file())
    names = _group_names(table)
    tp, ep = (table[name].to_numpy().astype(float) for name in ("tp", "ep"))
    points = table["seconds"].chunk(0).values.to_numpy().astype(float)
    seconds = points.reshape(-1, len(TIMED_TOKENS), len(ROUTINGS))
    places: dict[Group, list[int]] = {}
    for place, group in enumerate(names):
        places.setdefault(group, []).append(place)
    return {g: TimedCells(tp[own], ep[own], seconds[own]) for g, own in places.items()}


def timed_versions() -> dict[Group, str]:
    """The engine's version of each group."""
    table = _read(seconds_table_file())
    return dict(zip(_group_names(table), table["version"].to_pylist(), strict=True))


def _group_names(table: Any) -> list[Group]:
    return list(zip(*(table[name].to_pylist() for name in GROUP), strict=True))


def _read(path: Path) -> Any:
    import pyarrow.parquet as pq

    # `read_table` imports pyarrow.dataset first, which takes longer than all the rest.
    return pq.ParquetFile(path).read(use_threads=False)


@cache
def _draws() -> dict[int, Floats]:
    """Distinct experts, load and busiest expert [3, tokens, routings] by EP."""
    table = _read(routing_table_file())
    names = ("distinct", "load", "busiest")
    values = np.stack([table[name].to_numpy().astype(float) for name in names])
    shaped = values.reshape(len(values), -1, len(TIMED_TOKENS), len(ROUTINGS))
    ranks = table["ep"].to_numpy().reshape(shaped.shape[1], -1)[:, 0]
    return {int(ep): shaped[:, place] for place, ep in enumerate(ranks)}


def timed_work(group: Group, tp: Floats, ep: Floats, weight_bytes: float) -> RankWork:
    """What was done at each point [cells, tokens, routings] of cells with `tp`, `ep` [cells]."""
    distinct, load, busiest = np.stack([_draws()[int(size)] for size in ep], axis=1)
    tokens = np.array(TIMED_TOKENS, float)[:, None]
    spread = {"tp": tp[:, None, None], "ep": ep[:, None, None], "busiest": busiest}
    work = RankWork.of(M3_SHAPE, tokens, distinct, load, **spread)
    return as_collected(group[0], work, weight_bytes)


def as_collected(hardware: str, work: RankWork, weight_bytes: float) -> RankWork:
    """`work` as the collector ran it, with weights found in the cache where they fit it."""
    if hardware not in _CACHE_BYTES:
        return work
    read = 3 * work.distinct * work.shape.hidden * work.width * weight_bytes
    return replace(work, cached=_SAVED / (1 + (read / _CACHE_BYTES[hardware]) ** _EDGE))


def log_correction(nodes: RankWork, log_ratio: Floats, work: RankWork) -> Floats:
    """Logarithm of measured over law [points] for `work`, from `log_ratio` at `nodes`.

    `nodes` and `log_ratio` are [tokens, routings] of one cell, tokens rising. Outside the timed
    token counts the nearest one holds.
    """
    axis = np.log(nodes.tokens[:, 0])
    place = np.interp(np.log(np.maximum(work.tokens, 1)), axis, np.arange(len(axis)))
    below = np.minimum(place.astype(int), max(len(axis) - 2, 0))
    at, found = _coordinates(nodes), _coordinates(work)
    ends = []
    for end in (below, np.minimum(below + 1, len(axis) - 1)):
        square = sum((a[end] - f[..., None]) ** 2 for a, f in zip(at, found, strict=True))
        weight = 1 / (square + _NEAR)
        ends.append((weight * log_ratio[end]).sum(-1) / weight.sum(-1))
    correction: Floats = ends[0] + (place - below) * (ends[1] - ends[0])
    return correction


def _coordinates(work: RankWork) -> tuple[Floats, Floats]:
    """How many of the experts that could be read are, and how much more than its share comes."""
    load = np.maximum(work.load, 1)
    most = np.minimum(load, work.rank_experts)
    share = work.tokens * work.shape.top_k / work.ep
    return np.log(np.maximum(work.distinct, 1) / most), np.log(load / np.maximum(share, 1e-9))
