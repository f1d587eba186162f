"""A map fitted on one domain and judged on the others, and a map that suits all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.progress import Progress
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.placement import SOLVERS, Plan, Topology, write_plan
from moeprof.placement.mix import MixResult, mix_domains
from moeprof.report.text.placement_studies import mix_text


def run(
    trace: TraceArgument,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that share the experts.")],
    nodes: Annotated[int, typer.Option(metavar="M", help="Nodes that share the GPUs.")] = 1,
    redundant: Annotated[int, typer.Option(metavar="R", help="Slots beyond one an expert.")] = 0,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "best",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PLAN.json", help="Write the map for the worst."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the halves and the searches.")] = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[MixResult]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    topology = Topology.even(gpus, opened.experts_per_layer + redundant, nodes)
    with Progress(quiet=quiet).stage("solving for every domain"):
        result = mix_domains(opened, topology, solver=solver, seed=seed)
    if output is not None:
        plan = Plan(result.placement, tuple(opened.layers), "mix", opened.model.name, result.load)
        write_plan(plan, output, force=force)
    return Answer(result, mix_text, json, inputs=[trace])
