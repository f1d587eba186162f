"""Will it fit? Memory of the fullest rank by tensor class, and an upper bound on decode speed.

MODEL is a preset name, a config.json or its folder. Ends with 4 when it does not fit.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.errors import InfeasibleError
from moeprof.hardware import hardware_files
from moeprof.projection import DeploymentProjection, project_deployment
from moeprof.report.text import projection_text


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    hardware: Annotated[str, typer.Option(help="GPUs: 8xh200, 2x8xb200 or a TOML file.")],
    precision: Annotated[
        str, typer.Option(help="Checkpoint: bf16, mxfp8, nvfp4, ... or a weight format.")
    ] = "bf16",
    tp: Annotated[int | None, typer.Option(help="Tensor parallel; all GPUs over dp.")] = None,
    ep: Annotated[int, typer.Option(help="Ways that experts go to ranks whole.")] = 1,
    dp: Annotated[int, typer.Option(help="Data-parallel groups.")] = 1,
    kv_dtype: Annotated[str, typer.Option(help="Format of the KV cache.")] = "bf16",
    index_dtype: Annotated[str, typer.Option(help="Format of the index-key cache.")] = "bf16",
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 1,
    input_len: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 0,
    output_len: Annotated[int, typer.Option(help="Generated tokens of a request.")] = 0,
    mtp: Annotated[
        bool, typer.Option("--mtp", help="Load the modules for multi-token prediction.")
    ] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[DeploymentProjection]:
    """Run the command."""
    projection = project_deployment(
        model,
        hardware,
        precision=precision,
        tp=tp,
        ep=ep,
        dp=dp,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        concurrency=concurrency,
        input_len=input_len,
        output_len=output_len,
        mtp=mtp,
    )
    code = 0 if projection.fits else InfeasibleError.exit_code
    return Answer(
        projection,
        projection_text,
        json,
        inputs=[*files_of(model), *hardware_files(hardware)],
        exit_code=code,
    )
