"""Show a hardware profile: every figure with its unit, provenance and source."""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.hardware import Cluster, load_hardware
from moeprof.report.text import hardware_text


def run(
    hardware: Annotated[str, typer.Argument(metavar="HW", help="h200, 8xh200, or a TOML file.")],
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Cluster]:
    """Run the command."""
    return Answer(load_hardware(hardware), hardware_text, json, inputs=files_of(hardware))
