"""A placement in a file: JSON that says what it is, read back with every rule checked.

Schema `moeprof.plan/1`: `schema`, `model` (name or null), `solver`, `layers` (native indices of the
MoE layers, one a row of the maps), `experts`, `topology` {`slots` per GPU, `nodes`},
`allow_duplicates`, `expert_bytes` (or null), `physical_to_logical_map` [layers][slots] and, where
it is known, `load` [layers][experts], the assignments that the map was fitted to.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from moeprof.errors import InputError, MoeprofError
from moeprof.hardware.profile_writing import check_target
from moeprof.placement.placement import Placement
from moeprof.placement.topology import Topology
from moeprof.result import Result

SCHEMA = "moeprof.plan/1"


@dataclass(frozen=True, eq=False)
class Plan(Result):
    """A placement, and what it is of: the model's name, its MoE layers, the solver."""

    placement: Placement
    layers: tuple[int, ...]  # native index of each row of the maps
    solver: str
    model: str | None = None
    load: NDArray[np.int64] | None = None  # [layers, experts] that it was fitted to

    def __post_init__(self) -> None:
        if len(self.layers) != self.placement.layers:
            raise InputError(
                f"a plan names {len(self.layers)} layers; its map has {self.placement.layers}"
            )
        shape = (self.placement.layers, self.placement.experts)
        if self.load is not None and self.load.shape != shape:
            raise InputError(
                f"a load of shape {self.load.shape} in a plan of {shape[0]} layers x {shape[1]} "
                "experts"
            )


class _TopologyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    slots: tuple[int, ...]
    nodes: int


class _PlanFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str | None
    solver: str
    layers: tuple[int, ...]
    experts: int
    topology: _TopologyFile
    allow_duplicates: bool
    expert_bytes: int | None
    physical_to_logical_map: list[list[int]]
    load: list[list[int]] | None = None


def write_plan(plan: Plan, path: str | Path, *, force: bool = False) -> None:
    """`plan` to a file at `path`, whole or not at all.

    Raises InputError where the file exists, without `force`.
    """
    placement = plan.placement
    topology = placement.topology
    document = {
        "schema": SCHEMA,
        "model": plan.model,
        "solver": plan.solver,
        "layers": list(plan.layers),
        "experts": placement.experts,
        "topology": {"slots": list(topology.slots), "nodes": topology.nodes},
        "allow_duplicates": placement.allow_duplicates,
        "expert_bytes": placement.expert_bytes,
        "physical_to_logical_map": placement.physical_to_logical_map.tolist(),
        "load": None if plan.load is None else plan.load.tolist(),
    }
    _write_whole(Path(path), json.dumps(document) + "\n", force)


def _write_whole(path: Path, content: str, force: bool) -> None:
    check_target(path, force=force)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def read_plan(path: str | Path) -> Plan:
    """The plan in the file at `path`.

    Raises InputError, with the file's name, where it is not one or breaks a rule of placements.
    """
    content = _read_file(Path(path))
    try:
        topology = Topology(content.topology.slots, content.topology.nodes)
        placement = Placement(
            _rectangular(content.physical_to_logical_map, "physical_to_logical_map"),
            content.experts,
            topology,
            content.allow_duplicates,
            content.expert_bytes,
        )
        load = None if content.load is None else _rectangular(content.load, "load")
        return Plan(placement, content.layers, content.solver, content.model, load)
    except MoeprofError as error:
        raise InputError(f"{path}: {error}") from error


def _read_file(path: Path) -> _PlanFile:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: a plan is written by place --output") from error
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise InputError(f"{path} is not a plan ({SCHEMA}): one is written by place --output")
    try:
        return _PlanFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}") from error


def _rectangular(rows: list[list[int]], name: str) -> NDArray[np.int64]:
    if not rows or len({len(row) for row in rows}) != 1:
        raise InputError(f"the rows of {name} differ in length")
    return np.array(rows, np.int64)
