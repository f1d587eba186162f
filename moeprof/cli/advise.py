"""The cheapest deployments that meet targets, why, and the engine's own command line.

HW names clusters (8xh200) or GPUs (b200: one to eight of it). Lengths are those of a workload, or
given. Ends with 4 where nothing meets the targets, and says what comes nearest.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.deployments import (
    AcceptanceOption,
    CalibrateOption,
    DraftOption,
    DraftTokensOption,
    IndexDtypeOption,
    MtpOption,
    RecordingOption,
    TransferOption,
    UtilizationOption,
    laws_of,
)
from moeprof.cli.traces import open_and_warn
from moeprof.errors import InfeasibleError, InputError
from moeprof.hardware import hardware_files
from moeprof.model import load_model
from moeprof.projection.advice import (
    LatencyTargets,
    Option,
    advise_deployment,
    compare_models,
    plan_traffic,
    try_machines,
)
from moeprof.projection.advice.search import parse_names
from moeprof.projection.advice.targets import longest_request
from moeprof.projection.deployment import Held
from moeprof.projection.serving import workload_names
from moeprof.report.text.advice import advice_text
from moeprof.report.text.advice_tables import comparison_text, machines_text


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    hardware: Annotated[
        str | None, typer.Option(metavar="HW,HW", help="What there is: 8xh200,b200.")
    ] = None,
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
    index_dtype: IndexDtypeOption = "bf16",
    utilization: UtilizationOption = None,
    redundant: Annotated[int, typer.Option(help="Second copies of experts a layer.")] = 0,
    draft: DraftOption = None,
    draft_tokens: DraftTokensOption = 0,
    acceptance_len: AcceptanceOption = 1.0,
    mtp: MtpOption = False,
    top: Annotated[int, typer.Option(help="Options to show; --json has all.")] = 5,
    compare: Annotated[
        str | None, typer.Option(metavar="MODEL,MODEL", help="Other models on the same hardware.")
    ] = None,
    consumer: Annotated[
        bool, typer.Option("--consumer", help="Machines one buys, or --hardware, for one user.")
    ] = False,
    trace: RecordingOption = None,
    transfer: TransferOption = None,
    calibrate: CalibrateOption = None,
    seed: Annotated[int, typer.Option(help="Of a workload's draws.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Any]:
    """Run the command."""
    loaded = load_model(model)
    if top < 1:
        raise InputError(f"--top is {top}, it must be at least 1")
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
    files = [*files_of(model), *(path for path in (trace, calibrate) if path is not None)]
    names = None if hardware is None else parse_names(hardware, "--hardware 8xh200,b200")
    files += [file for name in names or () for file in hardware_files(name)]
    if consumer:
        found = try_machines(loaded, traffic, names, laws=laws_of(calibrate))
        return Answer(found, machines_text, json, files, _code(found.options))
    if names is None:
        raise InputError("--hardware is missing: --hardware 8xh200,b200, or --consumer")
    how: dict[str, Any] = {
        "engine": engine,
        "precisions": None if precision is None else parse_names(precision, "--precision nvfp4"),
        "kv_dtype": kv_dtype,
        "index_dtype": index_dtype,
        "held": Held(utilization, redundant, None, None, draft, mtp),
        "laws": laws_of(calibrate),
        "context": longest_request(loaded, workload),
    }
    targets = LatencyTargets(tpot_ms, ttft_ms, sure)
    if compare is not None:
        models = [loaded, *map(load_model, parse_names(compare, "--compare llama-3.1-70b"))]
        side = compare_models(models, names, targets, traffic, **how)
        return Answer(side, comparison_text, json, files, _code(side.options))
    opened = None if trace is None else open_and_warn(trace, quiet)
    advice = advise_deployment(
        loaded, names, targets, traffic, trace=opened, transfer=transfer, **how
    )
    return Answer(advice, lambda shown: advice_text(shown, top), json, files, _code(advice.options))


def _code(options: list[Option]) -> int:
    return 0 if options else InfeasibleError.exit_code
