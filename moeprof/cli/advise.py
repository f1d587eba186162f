"""The cheapest deployments that meet targets, why, and the engine's own command line.

HW names clusters (8xh200) or GPUs (b200: one to eight of it). Lengths are those of a workload, or
given. Ends with 4 where nothing meets the targets, and says what comes nearest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.traces import open_and_warn
from moeprof.errors import InfeasibleError
from moeprof.hardware import hardware_files
from moeprof.model import load_model
from moeprof.projection import (
    LatencyTargets,
    Laws,
    advise_deployment,
    calibrate_laws,
    plan_traffic,
    read_measured,
    shipped_laws,
)
from moeprof.projection.advice.search import parse_hardware
from moeprof.projection.deployment import Held
from moeprof.projection.serving import workload_names
from moeprof.report.text import advice_text


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    hardware: Annotated[str, typer.Option(metavar="HW,HW", help="What there is: 8xh200,b200.")],
    tpot_ms: Annotated[
        float | None, typer.Option(help="Longest time per output token, ms. [any]")
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(help="Longest time to the first token, ms. [any]")
    ] = None,
    sure: Annotated[
        bool, typer.Option("--sure", help="The upper end of the 80 % band meets them too.")
    ] = False,
    engine: Annotated[str, typer.Option(help="vllm, sglang, trtllm, llamacpp, mlx, ...")] = "vllm",
    precision: Annotated[
        str | None,
        typer.Option(metavar="FMT,FMT", help="Checkpoints to try; all that run there."),
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help=f"Lengths of: {', '.join(workload_names())}.")
    ] = None,
    input_len: Annotated[int | None, typer.Option(help="Prompt tokens. [4096]")] = None,
    output_len: Annotated[int | None, typer.Option(help="Generated tokens. [1024]")] = None,
    cached_len: Annotated[
        int | None, typer.Option(help="Prompt tokens that are in the cache. [0]")
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="Of the KV cache; FP8 with quantized weights.")
    ] = None,
    index_dtype: Annotated[str, typer.Option(help="Format of the index-key cache.")] = "bf16",
    utilization: Annotated[
        float | None,
        typer.Option("--gpu-memory-utilization", help="Share of the card; the engine's own."),
    ] = None,
    redundant: Annotated[int, typer.Option(help="Second copies of experts a layer.")] = 0,
    draft: Annotated[str | None, typer.Option(help="Draft model, such as eagle3-gqa.")] = None,
    draft_tokens: Annotated[int, typer.Option(help="Tokens drafted a step.")] = 0,
    acceptance_len: Annotated[
        float, typer.Option(help="Tokens a step yields, the drafted and accepted ones too.")
    ] = 1.0,
    mtp: Annotated[
        bool, typer.Option("--mtp", help="Load the modules for multi-token prediction.")
    ] = False,
    top: Annotated[int, typer.Option(help="Options to show; --json has all.")] = 5,
    trace: Annotated[
        Path | None, typer.Option(metavar="T", help="A recording: which experts steps read.")
    ] = None,
    transfer: Annotated[
        str | None, typer.Option(help="How a recording of another model is carried over.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of 2 to 5 of your own measurements.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of a workload's draws.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Any]:
    """Run the command."""
    loaded = load_model(model)
    names = parse_hardware(hardware)
    traffic = plan_traffic(
        loaded,
        workload_name=workload,
        input_len=input_len,
        output_len=output_len,
        cached_len=cached_len,
        draft_tokens=draft_tokens,
        accepted=acceptance_len,
        seed=seed,
    )
    advice = advise_deployment(
        loaded,
        names,
        LatencyTargets(tpot_ms, ttft_ms, sure),
        traffic,
        engine=engine,
        precisions=None if precision is None else precision.split(","),
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        held=Held(utilization, redundant, None, None, draft, mtp),
        laws=None
        if calibrate is None
        else calibrate_laws(shipped_laws(), read_measured(calibrate)),
        trace=None if trace is None else open_and_warn(trace, quiet),
        transfer=transfer,
    )
    code = 0 if advice.found else InfeasibleError.exit_code
    inputs: list[Path] = [*files_of(model)]
    inputs += [path for path in (trace, calibrate) if path is not None]
    inputs += [file for name in names for file in hardware_files(name)]
    return Answer(advice, lambda found: advice_text(found, top), json, inputs, code)


def _laws(calibrate: Path | None) -> Laws:
    laws = shipped_laws()
    return laws if calibrate is None else calibrate_laws(laws, read_measured(calibrate))
