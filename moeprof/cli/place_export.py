"""Write a placement as the file that an engine loads, and print the flags that make it do so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.placement import read_plan
from moeprof.placement.exports import ENGINES, PlanExport, export_name, export_plan
from moeprof.report.text.place_export import plan_export_text


def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that place --output wrote.")],
    engine: Annotated[str, typer.Option(metavar="ENGINE", help=", ".join(ENGINES) + ".")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; beside PLAN if not given.")
    ] = None,
    gpu_experts: Annotated[
        int | None,
        typer.Option(
            help="Experts a layer that the GPU keeps, where the CPU has the rest; as many as one "
            "GPU of the plan if not given."
        ),
    ] = None,
    hidden_layers: Annotated[
        int | None,
        typer.Option(help="All layers of the model; up to the plan's last if not given."),
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[PlanExport]:
    """Run the command."""
    result = export_plan(
        read_plan(plan),
        engine,
        output or export_name(plan, engine),
        gpu_experts=gpu_experts,
        hidden_layers=hidden_layers,
        force=force,
    )
    return Answer(result, plan_export_text, json, inputs=[plan])
