"""Rebalance every N steps: what it saves, what it moves, and when that pays."""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.errors import InputError
from moeprof.hardware import load_hardware
from moeprof.placement import SOLVERS, Topology
from moeprof.placement.online import OnlineResult, place_online
from moeprof.placement.replay import Share
from moeprof.placement.waiting import assignment_seconds
from moeprof.report.text.placement_studies import online_text
from moeprof.trace import Phase, Trace


def run(
    trace: TraceArgument,
    interval: Annotated[int, typer.Option(metavar="STEPS", help="Steps between rebalances.")],
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="GPUs that share the experts, or --hardware.")
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="M", help="Nodes that share the GPUs.")] = 1,
    redundant: Annotated[int, typer.Option(metavar="R", help="Slots beyond one an expert.")] = 0,
    window: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Solve for the last so many; the interval.")
    ] = None,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "best",
    max_imbalance: Annotated[
        float | None, typer.Option(metavar="X", help="Good enough: best stops there, moves less.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Requests at a time; steps as recorded if none.")
    ] = None,
    phase: Annotated[str, typer.Option(help="Tokens: all, prefill or decode.")] = "all",
    share: Annotated[Share, typer.Option(help="How replicas share tokens.")] = Share.EQUAL,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="HW", help="2x8xh200 say: its links give seconds of moves."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Weight format that moves.")] = "bf16",
    only_if_it_pays: Annotated[
        bool, typer.Option("--only-if-it-pays", help="Leave out what would not pay in an interval.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the searches.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[OnlineResult]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    topology = topology_of(opened, gpus, nodes, redundant, hardware)
    seconds = None
    if hardware is not None and opened.model.tensors:
        seconds = assignment_seconds(opened.model, load_hardware(hardware), precision)
    with Progress(quiet=quiet).stage("rebalancing"):
        result = place_online(
            opened,
            topology,
            interval=interval,
            window=window,
            solver=solver,
            batch=batch,
            phase=Phase.parse(phase),
            share=share,
            expert_bytes=opened.model.bytes_per_expert(precision) if opened.model.tensors else None,
            seconds_per_assignment=seconds,
            only_if_it_pays=only_if_it_pays,
            max_imbalance=max_imbalance,
            seed=seed,
        )
    return Answer(result, online_text, json, inputs=[trace, *files_of(hardware)])


def topology_of(
    trace: Trace, gpus: int | None, nodes: int, redundant: int, hardware: str | None
) -> Topology:
    """The GPUs of --hardware with its links, or --gpus in --nodes without."""
    if (gpus is None) == (hardware is None):
        raise InputError("give one of --gpus N and --hardware HW, which counts them")
    if redundant < 0:
        raise InputError(f"--redundant {redundant}: 0 or more slots beyond one an expert")
    slots = trace.experts_per_layer + redundant
    if hardware is None:
        return Topology.even(gpus or 0, slots, nodes)
    cluster = load_hardware(hardware)
    return Topology.of_cluster(cluster, Topology.even(cluster.gpus, slots, cluster.nodes).slots)
