"""Which GPU holds which expert: solve on one window of a trace, judge on a later one.

A lower bound stands beside every imbalance. `place export` writes what an engine loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.limits import parse_bytes
from moeprof.cli.traces import open_and_warn
from moeprof.errors import InputError
from moeprof.placement import (
    SOLVERS,
    PlacementResult,
    Topology,
    place_load,
    place_trace,
    read_load,
    read_plan,
    write_plan,
)
from moeprof.placement.windows import SplitBy
from moeprof.report.text.placement import placement_text


def run(
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that share the experts, 2 or more.")],
    trace: Annotated[
        Path | None, typer.Argument(metavar="T", help="A trace folder or an importable file.")
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy", help="Instead of T: counts [layers, experts]."),
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="M", help="Nodes that share the GPUs.")] = 1,
    redundant: Annotated[
        int, typer.Option(metavar="R", help="Slots a layer beyond one an expert.")
    ] = 0,
    slots: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Instead of --redundant: slots a layer of each GPU."),
    ] = None,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "best",
    groups: Annotated[
        int, typer.Option(help="Expert groups, for eplb over nodes and for models that have them.")
    ] = 1,
    split: Annotated[SplitBy, typer.Option(help="What divides the two windows.")] = SplitBy.TIME,
    fit: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the window that is fitted on.")
    ] = 0.5,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Judge steps of N requests at a time; else as recorded."),
    ] = None,
    before: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="The map in use: move little from it.")
    ] = None,
    max_imbalance: Annotated[
        float | None, typer.Option(metavar="X", help="Good enough: the search stops there.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Length of a layer's search.")] = 100,
    precision: Annotated[str, typer.Option(help="Weight format that slots hold.")] = "bf16",
    memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="A GPU's memory for experts, 60GiB say.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PLAN.json", help="Write the plan.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of searches and random splits.")] = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[PlacementResult]:
    """Run the command."""
    if (trace is None) == (load is None):
        raise InputError("give one of T, a trace, and --load FILE.npy, counts [layers, experts]")
    room = parse_bytes(memory, "--memory")
    solving: dict[str, Any] = {
        "solver": solver,
        "seed": seed,
        "rounds": rounds,
        "groups": groups,
        "max_imbalance": max_imbalance,
        "before": None if before is None else read_plan(before).placement,
    }
    if load is not None:
        counts = read_load(load)
        experts = counts.shape[-1] if counts.ndim else 0
        topology = _topology(experts, gpus, nodes, redundant, slots, room)
        result = place_load(counts, topology, **solving)
    elif trace is not None:
        opened = open_and_warn(trace, quiet)
        topology = _topology(opened.experts_per_layer, gpus, nodes, redundant, slots, room)
        result = place_trace(
            opened,
            topology,
            split=split,
            fit=fit,
            batch=batch,
            precision=precision,
            **solving,
        )
    if output is not None:
        write_plan(result.plan, output, force=force)
    return Answer(
        result, placement_text, json, inputs=[path for path in (trace, load, before) if path]
    )


def _topology(
    experts: int, gpus: int, nodes: int, redundant: int, slots: str | None, room: int | None
) -> Topology:
    """The machines that were asked for. Raises InputError where they cannot be."""
    if redundant < 0:
        raise InputError(f"--redundant {redundant}: 0 or more slots beyond one an expert")
    if slots is None:
        each = Topology.even(gpus, experts + redundant, nodes).slots
    elif redundant:
        raise InputError("give one of --redundant and --slots, which counts all slots")
    else:
        each = _slots(slots, gpus)
    return Topology(each, nodes, None if room is None else (room,) * gpus)


def _slots(text: str, gpus: int) -> tuple[int, ...]:
    """'3,3,2' as slots by GPU."""
    try:
        slots = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--slots '{text}': give a number for each GPU, such as 3,3,2") from None
    if len(slots) != gpus:
        raise InputError(f"--slots '{text}' is of {len(slots)} GPUs, --gpus says {gpus}")
    return slots
