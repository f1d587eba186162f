"""Will it fit, how fast, at what cost? One deployment, or a table of them.

MODEL is a preset name, a hub id of one, a config.json or its folder. Ends with 4 when it does not
fit. Times and rates are those of steady serving with 80 % bands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
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
from moeprof.cli.limits import parse_bytes
from moeprof.cli.traces import open_and_warn
from moeprof.errors import InfeasibleError, InputError
from moeprof.hardware import hardware_files
from moeprof.model import load_model
from moeprof.projection import project_deployment, project_table, recorded_loads
from moeprof.report.text.memory import projection_text
from moeprof.report.text.speed import projected_table_text


def run(
    model: Annotated[str | None, typer.Argument(metavar="MODEL")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="GPUs: 8xh200, 2x8xb200 or a TOML file.")
    ] = None,
    precision: PrecisionOption = "bf16",
    tp: TpOption = None,
    ep: EpOption = 1,
    dp: Annotated[int, typer.Option(help="Data-parallel groups.")] = 1,
    pp: Annotated[int, typer.Option(help="Pipeline stages.")] = 1,
    pad_heads: Annotated[
        bool, typer.Option("--pad-heads", help="Allow a tp that does not divide the heads.")
    ] = False,
    engine: Annotated[str, typer.Option(help="vllm, sglang, trtllm, llamacpp, ...")] = "vllm",
    engine_version: ReleaseOption = None,
    kv_dtype: KvDtypeOption = "bf16",
    index_dtype: IndexDtypeOption = "bf16",
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 1,
    input_len: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 1024,
    output_len: Annotated[int, typer.Option(help="Generated tokens of a request.")] = 1024,
    cached_len: Annotated[int, typer.Option(help="Prompt tokens that are in the cache.")] = 0,
    utilization: UtilizationOption = None,
    redundant: Annotated[int, typer.Option(help="Second copies of experts a layer.")] = 0,
    cache_slots: Annotated[
        int | None, typer.Option(help="Experts a layer on the GPUs, the rest in host memory.")
    ] = None,
    ram: Annotated[str | None, typer.Option(help="Host memory of a node, 512GiB.")] = None,
    draft: DraftOption = None,
    draft_tokens: DraftTokensOption = 0,
    acceptance_len: AcceptanceOption = 1.0,
    mtp: MtpOption = False,
    trace: RecordingOption = None,
    transfer: TransferOption = None,
    calibrate: CalibrateOption = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Many deployments, a row each.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="OUT.csv", help="Of --table.")] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Any]:
    """Run the command."""
    laws = laws_of(calibrate)
    if table is not None:
        if output is None or model is not None:
            raise InputError("--table takes --output OUT.csv, and no MODEL: its rows name them")
        done = project_table(table, output, laws=laws, force=force)
        return Answer(done, projected_table_text, json, inputs=_files(table, calibrate))
    if model is None or hardware is None:
        raise InputError("MODEL and --hardware are missing: project minimax-m3 --hardware 8xh200")
    loaded = load_model(model)
    loads = None
    if trace is not None:
        loads = recorded_loads(open_and_warn(trace, quiet), loaded, ep=ep, transfer=transfer)
    projection = project_deployment(
        loaded,
        hardware,
        precision=precision,
        tp=tp,
        ep=ep,
        dp=dp,
        pp=pp,
        pad_heads=pad_heads,
        engine=engine,
        release=engine_version,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        concurrency=concurrency,
        input_len=input_len,
        output_len=output_len,
        cached_len=cached_len,
        draft_tokens=draft_tokens,
        accepted=acceptance_len,
        utilization=utilization,
        redundant=redundant,
        cache_slots=cache_slots,
        ram_bytes=parse_bytes(ram, "--ram"),
        draft=draft,
        mtp=mtp,
        laws=laws,
        loads=loads,
    )
    code = 0 if projection.fits else InfeasibleError.exit_code
    inputs = [*files_of(model), *hardware_files(hardware), *_files(calibrate, trace)]
    return Answer(projection, projection_text, json, inputs=inputs, exit_code=code)


def _files(*named: Path | None) -> list[Path]:
    return [path for path in named if path is not None]
