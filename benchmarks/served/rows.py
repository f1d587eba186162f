"""The measured rows: one deployment at one concurrency each, and which rows belong together."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "data"

# One architecture under two names: many runs stand under both, so they are never set apart.
FAMILIES = {"deepseek-ai/DeepSeek-V3": "DeepSeek-R1", "deepseek-ai/DeepSeek-R1": "DeepSeek-R1"}
DENSE = frozenset({"meta-llama/Llama-3.1-70B"})


class Configuration(NamedTuple):
    """What a deployment is, apart from its load and the version of its engine."""

    family: str
    hardware: str
    engine: str
    precision: str
    tp: int
    dp: int
    ep: int


@dataclass(frozen=True)
class ServedRow:
    """One measurement in closed loop; times are means or medians, as published."""

    id: str
    source: str
    engine: str
    engine_version: str
    model: str
    hardware: str
    precision: str
    gemm: str
    moe: str
    input_len: int
    output_len: int
    concurrency: int
    tp: int
    dp: int
    moe_tp: int
    moe_ep: int
    ttft_ms: float | None
    tpot_ms: float | None
    # What the tables of MiniMax-M3 and of other points add.
    kv_dtype: str = ""
    cached_len: int = 0  # tokens of input_len that need no prefill
    draft: str = ""  # speculation, as "eagle3 k=3"
    acceptance_len: float | None = None  # tokens a step with it
    tpot_from: str = "stated"
    assumed: str = ""  # columns that the source does not state
    note: str = ""

    @property
    def family(self) -> str:
        """The model without its publisher; one name where two models are one architecture."""
        return FAMILIES.get(self.model, self.model.split("/")[-1])

    @property
    def gpus(self) -> int:
        """All GPUs of the deployment."""
        return self.tp * self.dp

    @property
    def dense(self) -> bool:
        """Whether the model has no experts."""
        return self.model in DENSE

    @property
    def configuration(self) -> Configuration:
        """The group that a split never parts."""
        return Configuration(
            self.family,
            self.hardware,
            self.engine,
            self.precision,
            self.tp,
            self.dp,
            self.moe_ep,
        )


@cache
def load_rows(name: str = "served_points") -> tuple[ServedRow, ...]:
    """Every row of benchmarks/data/`name`.csv that states no problem, in the file's order."""
    with (DATA / f"{name}.csv").open(newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file) if not line.get("problem"))


def moe_rows(rows: Iterable[ServedRow]) -> list[ServedRow]:
    """Those of models with experts."""
    return [row for row in rows if not row.dense]


def without_copies(rows: Iterable[ServedRow]) -> list[ServedRow]:
    """Each run once, under its first row: the files that were merged repeat each other's runs.

    A copy has the configuration, lengths, concurrency and both measured times of an earlier row.
    """
    kept: dict[tuple[object, ...], ServedRow] = {}
    for row in rows:
        load = (row.input_len, row.output_len, row.concurrency)
        kept.setdefault((row.configuration, *load, row.ttft_ms, row.tpot_ms), row)
    return list(kept.values())


def by_configuration(rows: Sequence[ServedRow]) -> dict[Configuration, list[ServedRow]]:
    """Rows of each configuration, configurations in order of their first row."""
    groups: dict[Configuration, list[ServedRow]] = {}
    for row in rows:
        groups.setdefault(row.configuration, []).append(row)
    return groups


def _row(line: dict[str, str]) -> ServedRow:
    return ServedRow(
        id=line["id"],
        source=line["source"],
        engine=line["engine"],
        engine_version=line["engine_version"],
        model=line["model"],
        hardware=line["hardware"],
        precision=line["precision"],
        gemm=line["gemm"],
        moe=line["moe"],
        input_len=int(line["input_len"]),
        output_len=int(line["output_len"]),
        concurrency=int(line["concurrency"]),
        tp=int(line["tp"]),
        dp=int(line["dp"]),
        moe_tp=int(line["moe_tp"]),
        moe_ep=int(line["moe_ep"]),
        ttft_ms=_number(line, "ttft_ms"),
        tpot_ms=_number(line, "tpot_ms"),
        kv_dtype=line.get("kv_dtype", ""),
        cached_len=int(line.get("cached_len") or 0),
        draft=line.get("draft", ""),
        acceptance_len=_number(line, "acceptance_len"),
        tpot_from=line.get("tpot_from", "stated"),
        assumed=line.get("assumed", ""),
        note=line.get("note", ""),
    )


def _number(line: dict[str, str], column: str) -> float | None:
    return float(line[column]) if line.get(column) else None
