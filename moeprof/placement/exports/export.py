"""The engines that a plan can be exported to, and writing the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import InputError
from moeprof.placement.exports import (
    ktransformers,
    llamacpp,
    llamacpp_cache,
    sglang,
    trtllm,
    vllm,
)
from moeprof.placement.exports.written import Wanted, Written
from moeprof.placement.plan import Plan
from moeprof.result import Result
from moeprof.trace.formats.exporting import whole_file

# name: (ending of the file, the function that makes its content)
ENGINES: dict[str, tuple[str, Callable[[Wanted], Written]]] = {
    "sglang": (".json", sglang.write),
    "vllm": (".json", vllm.write),
    "trtllm": (".yaml", trtllm.write),
    "ktransformers": (".pt", ktransformers.write),
    "llamacpp": (".txt", llamacpp.write),
    "llamacpp-cache": (".csv", llamacpp_cache.write),
}


@dataclass(frozen=True)
class PlanExport(Result):
    """A file for an engine and the flags that make it read the file."""

    engine: str
    path: str
    flags: str
    notes: list[str] = field(default_factory=list)


def export_name(plan: Path, engine: str) -> Path:
    """Where the export of the plan in file `plan` goes unless told: plan.json, plan.sglang.json."""
    return plan.with_name(f"{plan.stem}.{engine}{_engine(engine)[0]}")


def export_plan(
    plan: Plan,
    engine: str,
    output: str | Path,
    *,
    gpu_experts: int | None = None,
    hidden_layers: int | None = None,
    force: bool = False,
) -> PlanExport:
    """Write `plan` to `output` as `engine` (one of `ENGINES`) reads it.

    `gpu_experts` is how many experts of a layer an engine that splits them between one GPU and the
    CPU keeps on the GPU, as many as one GPU of the plan if None; `hidden_layers` all layers of the
    model, up to the plan's last if None. The file appears whole or not at all. Raises InputError
    where the engine cannot do what the plan says, and if the file exists without `force`.
    """
    _, write = _engine(engine)
    written = write(Wanted(plan, str(output), hidden_layers, gpu_experts))
    with whole_file(Path(output), force) as file:
        file.write(written.content)
    return PlanExport(engine, str(output), written.flags, written.notes)


def _engine(name: str) -> tuple[str, Callable[[Wanted], Written]]:
    if name not in ENGINES:
        raise InputError(f"engine '{name}' is not one of {', '.join(ENGINES)}")
    return ENGINES[name]
