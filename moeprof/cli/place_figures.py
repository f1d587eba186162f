"""Place the experts of a trace and draw it: load by GPU and layer, redundancy, rebalancing over
time, traffic between nodes, and experts that are used together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.progress import Progress
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.placement import Topology
from moeprof.placement.study import study_placement
from moeprof.report.placement_figures import PlacementFigures, save_placement_figures
from moeprof.report.text.placement_studies import placement_figures_text


def run(
    trace: TraceArgument,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that share the experts.")],
    png: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write them into.")],
    nodes: Annotated[int, typer.Option(metavar="M", help="Nodes that share the GPUs.")] = 1,
    redundant: Annotated[int, typer.Option(metavar="R", help="Slots beyond one an expert.")] = 0,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Requests at a time; steps as recorded if none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of searches and samples.")] = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[PlacementFigures]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    topology = Topology.even(gpus, opened.experts_per_layer + redundant, nodes)
    progress = Progress(2, quiet=quiet)
    with progress.stage("placing"):
        study = study_placement(opened, topology, batch=batch, seed=seed)
    with progress.stage("drawing"):
        result = save_placement_figures(study, png, force=force)
    return Answer(result, placement_figures_text, json, inputs=[trace])
