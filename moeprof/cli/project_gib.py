"""What one GiB more on each GPU is worth: as KV or as redundant experts, in tokens/s.

For a deployment whose experts all stand in GPU memory; `moeprof offload` says it for others.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.hardware import hardware_files
from moeprof.projection.gib import project_gib
from moeprof.projection.routing import GibValue
from moeprof.report.text.routing import gib_text


def run(
    trace: TraceArgument,
    hardware: Annotated[str, typer.Option(help="GPUs that share the experts: 8xh200.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="That is served; the recorded one.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the checkpoint that is served.")] = "bf16",
    dp: Annotated[int, typer.Option(help="Data-parallel groups.")] = 1,
    engine: Annotated[str, typer.Option(help="vllm, sglang, trtllm, ...")] = "vllm",
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 64,
    input_len: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 1024,
    output_len: Annotated[int, typer.Option(help="Generated tokens of a request.")] = 1024,
    transfer: Annotated[
        str | None, typer.Option(help="How a recording of another model is carried over.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the halves and the search.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[GibValue]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    with Progress(quiet=quiet).stage("placing and projecting"):
        result = project_gib(
            opened,
            hardware,
            model=model,
            precision=precision,
            dp=dp,
            engine=engine,
            concurrency=concurrency,
            input_len=input_len,
            output_len=output_len,
            transfer=transfer,
            seed=seed,
        )
    inputs = [trace, *hardware_files(hardware), *([] if model is None else files_of(model))]
    return Answer(result, gib_text, json, inputs=inputs)
