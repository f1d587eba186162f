"""Serve requests one by one: TTFT and TPOT as distributions, queueing, goodput.

A closed loop keeps --concurrency requests in flight; an open loop draws arrivals at --rate
requests/s, or takes them from --requests FILE (CSV or JSON Lines: arrival_s, input_len, output_len;
or a recording). Batching, chunked prefill and KV admission follow --engine. MODEL is a preset name,
a config.json or its folder. Ends with 4 when the weights do not fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.deployments import (
    AcceptanceOption,
    CalibrateOption,
    DraftOption,
    DraftTokensOption,
    EpOption,
    IndexDtypeOption,
    KvDtypeOption,
    MtpOption,
    PrecisionOption,
    RecordingOption,
    ReleaseOption,
    TpOption,
    TransferOption,
    UtilizationOption,
    laws_of,
)
from moeprof.cli.traces import open_and_warn
from moeprof.hardware import hardware_files
from moeprof.model import load_model
from moeprof.projection import recorded_loads
from moeprof.projection.deployment import Held
from moeprof.projection.serving import Targets, make_load, workload_names
from moeprof.projection.serving.project import ServingProjection, project_serving
from moeprof.report.text.serving import serving_text


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    hardware: Annotated[str, typer.Option(help="GPUs: 8xh200, 2x8xb200 or a TOML file.")],
    precision: PrecisionOption = "bf16",
    tp: TpOption = None,
    ep: EpOption = 1,
    dp: Annotated[int, typer.Option(help="Data-parallel groups, whose steps wait.")] = 1,
    engine: Annotated[str, typer.Option(help="vllm, sglang or trtllm.")] = "vllm",
    engine_version: ReleaseOption = None,
    kv_dtype: KvDtypeOption = "bf16",
    index_dtype: IndexDtypeOption = "bf16",
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests in flight at a time.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests/s of a Poisson process.")
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own requests, or a recording.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help=f"Lengths by name: {', '.join(workload_names())}.")
    ] = None,
    input_len: Annotated[int | None, typer.Option(help="Prompt tokens of a request.")] = None,
    output_len: Annotated[int | None, typer.Option(help="Generated tokens of a request.")] = None,
    length_spread: Annotated[
        float, typer.Option(help="Lengths uniform in 1 - this to 1 of those; InferenceX: 0.2.")
    ] = 0.0,
    hit_ratio: Annotated[
        float | None, typer.Option(help="Of each prompt in the prefix cache. [as stated, or 0]")
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option(metavar="N", help="[10 x concurrency; 1,000 with --rate]")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Prompts are cut so that no request is longer.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a step. [the engine's default]")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Sequences of a group. [the engine's default]")
    ] = None,
    utilization: UtilizationOption = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV tokens of a group. [what the memory ledger leaves]")
    ] = None,
    draft_tokens: DraftTokensOption = 0,
    acceptance_len: AcceptanceOption = 1.0,
    draft: DraftOption = None,
    mtp: MtpOption = False,
    own_clocks: Annotated[
        bool, typer.Option("--own-clocks", help="Data-parallel groups do not wait for each other.")
    ] = False,
    trace: RecordingOption = None,
    transfer: TransferOption = None,
    calibrate: CalibrateOption = None,
    ttft_ms: Annotated[float | None, typer.Option(help="Target that goodput counts by.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Target that goodput counts by.")] = None,
    seed: Annotated[int, typer.Option(help="Of lengths and arrivals.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ServingProjection]:
    """Run the command."""
    load = make_load(
        concurrency=concurrency,
        rate=rate,
        requests_file=requests,
        workload_name=workload,
        input_len=input_len,
        output_len=output_len,
        length_spread=length_spread,
        hit_ratio=hit_ratio,
        num_requests=num_requests,
        longest=max_model_len,
        seed=seed,
    )
    loaded = load_model(model)
    loads = None
    if trace is not None:
        loads = recorded_loads(open_and_warn(trace, quiet), loaded, ep=ep, transfer=transfer)
    laws = laws_of(calibrate)
    projection = project_serving(
        loaded,
        hardware,
        load,
        precision=precision,
        tp=tp,
        ep=ep,
        dp=dp,
        engine=engine,
        release=engine_version,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        held=Held(utilization=utilization, mtp=mtp, draft=draft),
        draft_tokens=draft_tokens,
        accepted=acceptance_len,
        max_step_tokens=max_num_batched_tokens,
        max_sequences=max_num_seqs,
        kv_tokens=kv_tokens,
        lock_step=not own_clocks,
        targets=Targets(ttft_ms, tpot_ms),
        laws=laws,
        loads=loads,
    )
    named = [path for path in (requests, trace, calibrate) if path is not None]
    inputs = [*files_of(model), *hardware_files(hardware), *named]
    return Answer(projection, serving_text, json, inputs=inputs)
