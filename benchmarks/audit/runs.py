"""The audited speeds as data: a run is one engine's speed on one row's machine."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A model: `token_parameters` are read by every token besides routed experts and the head."""

    name: str
    layers: int
    moe_layers: int
    experts: int
    top_k: int
    expert_parameters: int
    token_parameters: int
    head_parameters: int


@dataclass(frozen=True)
class Engine:
    """How an engine serves a miss, as its source says."""

    name: str
    runtime: str  # graph, native or eager
    serve: str  # cpu, copy, auto, layers or stream
    overlap: bool
    residency: str  # lru, popular, placed or none


@dataclass(frozen=True)
class Band:
    """The value that is taken, and the ends of what it may be."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Machine:
    """Rates in bytes/s; memory in bytes. `kernel`: what the source measured of its CPU kernel."""

    gpu: str
    memory: float
    gpu_rate: float
    link: Band
    host: Band
    kernel: float | None


@dataclass(frozen=True)
class Budget:
    """What the GPU holds: a fraction of the experts, experts a layer, or bytes of all weights."""

    kind: str
    value: float
    imputed: bool


@dataclass(frozen=True)
class Run:
    """`row` is the id in the audit; `name` is the engine as the source calls it."""

    row: str
    source: str
    name: str
    engine: Engine
    shape: Shape
    machine: Machine
    budget: Budget
    expert_bits: float
    dense_bits: float
    tok_s: float
    baseline: bool
    speculative: bool
    lossy: bool
    note: str


@cache
def load_runs() -> tuple[Run, ...]:
    """The systems' own 58 speeds, then those of the baselines that somebody measured."""
    rows = {row["id"]: row for row in table("rows")}
    own = [_run(row, row) for row in rows.values()]
    beside = [
        _run(rows[base["row"]], base, baseline=True)
        for base in table("baselines")
        if base["kind"] != "estimated"
    ]
    return (*own, *beside)


def table(name: str) -> list[dict[str, str]]:
    """The rows of one file of the audit."""
    with (DATA / f"offload_audit_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _run(row: Mapping[str, str], said: Mapping[str, str], baseline: bool = False) -> Run:
    return Run(
        row=row["id"],
        source=row["source"],
        name=said["name"] if baseline else row["engine"],
        engine=engines()[said["engine"]],
        shape=shapes()[row["model"]],
        machine=_machine(row),
        budget=_budget(row, said.get("resident_share", "")),
        expert_bits=float(row["expert_bits"]),
        dense_bits=float(row["dense_bits"]),
        tok_s=float(said["tok_s"]),
        baseline=baseline,
        speculative=said["speculative"] == "yes",
        lossy=row["lossy"] == "yes" and not baseline,
        note=said["note"],
    )


def _budget(row: Mapping[str, str], own_share: str) -> Budget:
    if own_share:
        return Budget("fraction", float(own_share), False)
    return Budget(row["budget_kind"], float(row["budget_value"]), row["budget_imputed"] == "yes")


def _machine(row: Mapping[str, str]) -> Machine:
    low, high = float(row["host_low_gb_s"]) * GB, float(row["host_high_gb_s"]) * GB
    measured = row["host_measured_as"] == "expert kernel"
    return Machine(
        gpu=row["gpu"],
        memory=float(row["gpu_memory_gb"]) * GB,
        gpu_rate=float(row["gpu_gb_s"]) * GB,
        link=Band(
            float(row["link_gb_s"]) * GB,
            float(row["link_low_gb_s"]) * GB,
            float(row["link_high_gb_s"]) * GB,
        ),
        host=Band(sqrt(low * high), low, high),
        kernel=float(row["host_measured_gb_s"]) * GB if measured else None,
    )


@cache
def shapes() -> dict[str, Shape]:
    """By model."""
    fields = list(Shape.__dataclass_fields__)[1:]
    return {
        row["model"]: Shape(row["model"], *(int(row[name]) for name in fields))
        for row in table("models")
    }


@cache
def engines() -> dict[str, Engine]:
    """By name."""
    return {
        row["engine"]: Engine(
            row["engine"], row["runtime"], row["serve"], row["overlap"] == "yes", row["residency"]
        )
        for row in table("engines")
    }
