"""Every chart, heatmap, table and set of bars of the page as a Parquet file of its own.

Charts give their values as they are: a row a point, with the columns view, series, x, y, low, high
and note, and the axes' labels in the schema's metadata. Bars give a row a part: its share of the
axis and what the page says of it. A column of a table whose every cell is a
plain number is one; others stay the words that the page shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from moeprof.report.blocks import GAP, Bars, Block, Cell, Heatmap, Section, Table
from moeprof.report.charts import Chart

_NUMBER = re.compile(r"-?\d{1,3}(,\d{3})*(\.\d+)?|-?\d+(\.\d+)?")


def arrow_tables(sections: Iterable[Section]) -> dict[str, pa.Table]:
    """A table for each figure and table of `sections`, by a name fit for a file."""
    tables: dict[str, pa.Table] = {}
    for section in sections:
        for block in section.blocks:
            if (made := _arrow(block)) is not None:
                tables[_name(section, block, tables)] = made
    return tables


def save_tables(tables: dict[str, pa.Table], folder: str | Path) -> list[Path]:
    """Write each as `folder`/NAME.parquet, all or none; returns their paths."""
    import pyarrow.parquet as pq

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}.parquet" for name in tables]
    with TemporaryDirectory(prefix=".tables-", dir=folder) as drafts:
        for name, table in zip(names, tables.values(), strict=True):
            pq.write_table(table, Path(drafts) / name)
        for name in names:
            os.replace(Path(drafts) / name, folder / name)
    return [folder / name for name in names]


def _arrow(block: Block) -> pa.Table | None:
    if isinstance(block, Chart):
        return _chart(block)
    if isinstance(block, Heatmap):
        return _heatmap(block)
    if isinstance(block, Bars):
        return _bars(block)
    return _table(block) if isinstance(block, Table) else None


def _name(section: Section, block: Block, taken: Iterable[str]) -> str:
    if isinstance(block, Chart | Heatmap | Bars):
        return block.id
    words = re.sub(r"[^a-z0-9]+", "-", getattr(block, "title", "").lower()).strip("-")[:60]
    name = f"{section.id}-{words}".rstrip("-")
    return name if name not in taken else f"{name}-{sum(each.startswith(name) for each in taken)}"


def _chart(chart: Chart) -> pa.Table:
    rows = [
        (series.view, series.name, *_padded(point), series.words[at] if series.words else None)
        for series in chart.series
        for at, point in enumerate(series.points)
    ]
    names = ["view", "series", "x", "y", "low", "high", "note"]
    kinds = [pa.string(), pa.string(), *[pa.float64()] * 4, pa.string()]
    schema = pa.schema(
        list(zip(names, kinds, strict=True)),
        metadata={"title": chart.title, "x": chart.x.label, "y": chart.y.label},
    )
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)


def _padded(point: Sequence[float]) -> tuple[float | None, ...]:
    """x, y, low and high; None for ends that are not known."""
    values = [float(value) for value in point]
    return (*values, *[None] * (4 - len(values)))


def _heatmap(heat: Heatmap) -> pa.Table:
    columns: dict[str, Any] = {
        "layer": [layer for layer in heat.layers for _ in range(heat.experts)],
        "expert": [expert for _ in heat.layers for expert in range(heat.experts)],
    }
    for view in heat.views:
        columns[view.name] = [load for row in view.load for load in row]
    return pa.table(columns).replace_schema_metadata({"title": heat.title})


def _bars(bars: Bars) -> pa.Table:
    """A row a part, gaps left out as the page leaves them blank."""
    rows = [
        (bar.name, part.name, part.share, part.text, bar.verdict)
        for bar in bars.bars
        for part in bar.parts
        if part.hue != GAP
    ]
    names = ["bar", "part", "share_of_axis", "note", "verdict"]
    kinds = [pa.string(), pa.string(), pa.float64(), pa.string(), pa.string()]
    schema = pa.schema(
        list(zip(names, kinds, strict=True)),
        metadata={"title": bars.title, "axis": bars.axis.label},
    )
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)


def _table(table: Table) -> pa.Table:
    columns = [_column([row[at] for row in table.rows]) for at in range(len(table.columns))]
    names = [name or "name" for name in table.columns]
    return pa.Table.from_arrays(columns, names=names, metadata={"title": table.title})


def _column(cells: Sequence[Cell]) -> pa.Array:
    texts = [str(cell) for cell in cells]
    if texts and all(_NUMBER.fullmatch(text) for text in texts):
        plain = [text.replace(",", "") for text in texts]
        kind = float if any("." in text for text in plain) else int
        return pa.array([kind(text) for text in plain])
    return pa.array(texts, pa.string())
