"""How many expert slots, which policy, how fast: a model that GPU memory cannot hold.

Weights beside the experts, KV and a reserve come first; the rest of GPU memory caches experts,
host memory has the others, drives what that cannot hold. The trace is replayed, and the misses of
every layer and step are timed. MODEL is a preset name, a config.json or its folder. Ends with 4
where something does not fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cache import CONTRACTS, POLICIES, Scope
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
from moeprof.cli.limits import parse_bytes
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.hardware import hardware_files
from moeprof.offload import AUTO_POLICIES, LAUNCHES, OffloadPlan, Serve, plan_offload
from moeprof.report.perfetto import write_perfetto
from moeprof.report.text.offload import offload_text


def run(
    trace: TraceArgument,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    hardware: Annotated[
        str, typer.Option(help="GPU, host and drives: rtx-4090+epyc-9005+nvme-gen4.")
    ],
    vram: Annotated[
        str | None,
        typer.Option(metavar="BYTES,BYTES", help="Of each GPU, 24GB say; several compare. [card]"),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Of the host; [enough for all experts].")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="P,P",
            help=f"auto ({', '.join(AUTO_POLICIES)}), or some of these and {', '.join(POLICIES)}.",
        ),
    ] = "auto",
    scope: Annotated[
        Scope, typer.Option(help="Slots per layer, one pool, or shared out by need.")
    ] = Scope.LAYER,
    contract: Annotated[
        str, typer.Option(help=f"Rules of the engine's cache: {', '.join(CONTRACTS)}.")
    ] = "atomic",
    serve: Annotated[
        Serve, typer.Option(help="A miss is copied, computed by the CPU, or what is shorter.")
    ] = Serve.AUTO,
    precision: Annotated[
        str, typer.Option(help="Checkpoint: bf16, mxfp8, nvfp4, ... or a weight format.")
    ] = "bf16",
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of KV to make room for, each request. [the trace's longest]"),
    ] = None,
    kv_dtype: Annotated[str, typer.Option(help="Format of the KV cache.")] = "bf16",
    phase: Annotated[str, typer.Option(help="decode or prefill, timed apart.")] = "decode",
    max_num_seqs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Batch the requests anew, N at a time; 1: one user."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens of a step with --max-num-seqs; prompts come in chunks.")
    ] = 8192,
    transfer: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Carry a recording of another model over: hit-ratio."),
    ] = None,
    pageable: Annotated[
        bool, typer.Option("--pageable", help="Host memory is not pinned: copies are staged.")
    ] = False,
    no_overlap: Annotated[
        bool, typer.Option("--no-overlap", help="GPU, link, CPU and drives take turns.")
    ] = False,
    apart: Annotated[
        bool, typer.Option("--apart", help="Copy the matrices of an expert one by one.")
    ] = False,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="No host copy of experts on the GPU; static only.")
    ] = False,
    launches: Annotated[
        str, typer.Option(help=f"Who launches kernels: {', '.join(LAUNCHES)}.")
    ] = "graph",
    fit: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Time the steps after this share alone; 0.5 where something is fitted.",
        ),
    ] = None,
    perfetto: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the timeline, for ui.perfetto.dev.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the timeline.")] = 4,
    force: ForceFlag = False,
    seed: Annotated[int, typer.Option(help="Of policy random.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[OffloadPlan]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    plan = plan_offload(
        opened,
        model,
        hardware,
        vram_bytes=_sizes(vram),
        ram_bytes=parse_bytes(ram, "--ram"),
        policy=policy.split(","),
        scope=scope,
        contract=contract,
        serve=serve,
        precision=precision,
        context_tokens=context,
        kv_dtype=kv_dtype,
        transfer=transfer,
        pinned=not pageable,
        overlap=not no_overlap,
        apart=apart,
        exclusive=exclusive,
        launches=launches,
        fit=fit,
        seed=seed,
        phase=phase,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    if perfetto is not None:
        write_perfetto(plan, perfetto, steps=steps, force=force)
    inputs = [trace, *files_of(model), *hardware_files(hardware)]
    return Answer(plan, offload_text, json, inputs=inputs)


def _sizes(vram: str | None) -> list[float] | None:
    if vram is None:
        return None
    sizes = (parse_bytes(part.strip(), "--vram") for part in vram.split(","))
    return [float(size) for size in sizes if size is not None]
