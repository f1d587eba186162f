"""How many redundant experts, and what do they cost: imbalance, GiB and, on hardware, tokens/s.

With --hardware, --batch requests are served at a time.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.cli.ranges import parse_numbers
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.errors import InputError
from moeprof.hardware import hardware_files
from moeprof.placement import SOLVERS
from moeprof.placement.replay import Share
from moeprof.placement.sweep import RedundancySweep, sweep_redundancy
from moeprof.placement.windows import SplitBy
from moeprof.projection.placed_speed import project_sweep
from moeprof.report.text.placement_studies import sweep_text
from moeprof.trace import Phase


def run(
    trace: TraceArgument,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that share the experts.")],
    redundant: Annotated[
        str, typer.Option(metavar="R,R", help="Slots a layer beyond one an expert, 0,16,32 say.")
    ],
    nodes: Annotated[int, typer.Option(metavar="M", help="Nodes that share the GPUs.")] = 1,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "best",
    split: Annotated[SplitBy, typer.Option(help="What divides the two windows.")] = SplitBy.TIME,
    fit: Annotated[float, typer.Option(metavar="SHARE", help="Of the window fitted on.")] = 0.5,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Requests at a time; steps as recorded if none.")
    ] = None,
    phase: Annotated[str, typer.Option(help="Tokens that are judged.")] = "all",
    share: Annotated[Share, typer.Option(help="How replicas share tokens.")] = Share.EQUAL,
    resamples: Annotated[int, typer.Option(help="Samples of requests, for intervals.")] = 100,
    hardware: Annotated[
        str | None, typer.Option(help="Output tokens/s on it too: 8xh200; needs --batch.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="That is served; the recorded one.")
    ] = None,
    transfer: Annotated[
        str | None, typer.Option(help="How a recording of another model is carried over.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the checkpoint that is served.")] = "bf16",
    input_len: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 1024,
    output_len: Annotated[int, typer.Option(help="Generated tokens of a request.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of splits, searches and samples.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[RedundancySweep]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    counts = parse_numbers(redundant, "--redundant") or []
    with Progress(quiet=quiet).stage("solving and judging"):
        result = sweep_redundancy(
            opened,
            gpus,
            counts,
            nodes=nodes,
            solver=solver,
            split=split,
            fit=fit,
            batch=batch,
            phase=Phase.parse(phase),
            share=share,
            resamples=resamples,
            seed=seed,
        )
    if hardware is None and model is not None:
        raise InputError("--model is what --hardware serves: give both")
    if hardware is not None:
        result = project_sweep(
            result,
            opened,
            hardware,
            model=model,
            transfer=transfer,
            precision=precision,
            input_len=input_len,
            output_len=output_len,
        )
    named = [] if hardware is None else hardware_files(hardware)
    inputs = [trace, *named, *([] if model is None else files_of(model))]
    return Answer(result, sweep_text, json, inputs=inputs)
