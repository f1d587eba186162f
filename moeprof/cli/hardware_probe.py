"""Measure this machine into a profile: memory, matrix products, drive and GPUs.

Each figure comes with its method and its spread. The drive is the one that holds the output, or
--drive-folder; a scratch file is written there and removed. What this machine lacks is named.
The file can be shown, and used as HW or as part of one: 2xrtx-4090+F.toml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, warn
from moeprof.cli.limits import parse_bytes
from moeprof.cli.progress import Progress
from moeprof.hardware.probe import HardwareProbe, probe_hardware
from moeprof.report.text.hardware import probe_text


def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="The TOML file to write.")],
    seconds: Annotated[float, typer.Option(help="Of each measurement, at least.")] = 1.0,
    skip: Annotated[
        str, typer.Option(metavar="STEP,STEP", help="Leave out memory, gemm, drive or gpu.")
    ] = "",
    drive_folder: Annotated[
        Path | None, typer.Option(help="A folder on the drive to read; the output's if not given.")
    ] = None,
    drive_size: Annotated[str, typer.Option(metavar="BYTES", help="Of the scratch file.")] = "1GiB",
    array_size: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Of each of 3 arrays; 4 x the last cache if not given."),
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[HardwareProbe]:
    """Run the command."""
    probe = probe_hardware(
        output,
        seconds=seconds,
        skip=[step.strip() for step in skip.split(",") if step.strip()],
        drive_folder=drive_folder,
        drive_bytes=parse_bytes(drive_size, "--drive-size") or 0,
        array_bytes=parse_bytes(array_size, "--array-size"),
        force=force,
        stage=Progress(quiet=quiet).stage,
    )
    if probe.warning:
        warn(probe.warning, quiet=quiet)
    return Answer(probe, probe_text, json)
