"""How much a projection hangs on routing: even, as recorded, and placed, step by step.

Half of the recording places the experts, the other half is judged. With --hardware the loads are
priced by the engine's MoE kernels. A recording of another model needs --transfer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.cli.ranges import parse_numbers
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.errors import InputError
from moeprof.hardware import hardware_files, load_hardware
from moeprof.model import MoEModel, load_model, load_precision
from moeprof.projection.moe_kernels import ExpertShape
from moeprof.projection.routing import METHODS, RoutingSensitivity, moe_seconds, study_routing
from moeprof.projection.routing.sensitivity import STEP_TOKENS, MoeSeconds
from moeprof.report.text.routing import sensitivity_text
from moeprof.trace import Phase


def run(
    trace: TraceArgument,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="That is served; the recorded one.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="That share the experts; those of --hardware.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="Milliseconds on it too: 8xh200.")] = None,
    engine: Annotated[str, typer.Option(help="Whose kernels: vllm, sglang, trtllm.")] = "vllm",
    precision: Annotated[str, typer.Option(help="Of the checkpoint that is served.")] = "bf16",
    tokens: Annotated[str | None, typer.Option(metavar="N,N", help="Of a step, 1,64,4096.")] = None,
    phase: Annotated[str, typer.Option(help="decode or prefill.")] = "decode",
    consecutive: Annotated[
        int, typer.Option(metavar="N", help="Tokens of each request a decode step: 1 + drafted.")
    ] = 1,
    label: Annotated[str | None, typer.Option(help="Judge requests of this label alone.")] = None,
    redundant: Annotated[
        int | None, typer.Option(metavar="R", help="Slots a layer beyond one an expert.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Exponent of AIConfigurator's power law, a column more.")
    ] = None,
    transfer: Annotated[
        str | None, typer.Option(help=f"For another model's recording: {', '.join(METHODS)}.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the halves, the search and the draws.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[RoutingSensitivity]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    served = opened.model if model is None else load_model(model)
    with Progress(quiet=quiet).stage("placing and drawing steps"):
        result = study_routing(
            opened,
            served,
            ranks=_ranks(gpus, hardware),
            tokens=parse_numbers(tokens, "--tokens") or STEP_TOKENS,
            phase=_phase(phase),
            consecutive=consecutive,
            label=label,
            redundant=redundant,
            transfer=transfer,
            alpha=alpha,
            seconds=None if hardware is None else _kernels(served, hardware, engine, precision),
            seed=seed,
        )
    inputs: list[Path] = [trace, *(files_of(model) if model is not None else [])]
    inputs += [] if hardware is None else hardware_files(hardware)
    return Answer(result, sensitivity_text, json, inputs=inputs)


def _ranks(gpus: int | None, hardware: str | None) -> int:
    if gpus is not None:
        return gpus
    if hardware is None:
        raise InputError("--gpus is missing: how many share the experts, or --hardware 8xh200")
    return load_hardware(hardware).gpus


def _phase(name: str) -> Phase:
    found = Phase.parse(name)
    if found not in (Phase.DECODE, Phase.PREFILL):
        raise InputError("--phase: decode or prefill, whose steps are made up of other tokens")
    return found


def _kernels(model: MoEModel, hardware: str, engine: str, precision: str) -> MoeSeconds:
    """What turns a load into the time of all MoE layers."""
    shape, profile = ExpertShape.of(model), load_hardware(hardware).profile
    dtype = load_precision(precision, model).formats["routed"]
    return lambda load: moe_seconds(load, shape, profile, engine, dtype)
