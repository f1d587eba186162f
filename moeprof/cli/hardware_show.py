"""Show a machine or a device: every figure with its unit, provenance and source.

HW is a GPU with a count before it, and the rest of a node after '+': 8xh200, 2x8xb200,
4xrtx-4090+epyc-9005+2xnvme-gen5, or a TOML file in place of a name.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.hardware import Cluster, HardwareList, describe_hardware, hardware_files
from moeprof.report.text.hardware import hardware_text


def run(
    hardware: Annotated[str, typer.Argument(metavar="HW", help="8xh200, epyc-9005, my.toml, ...")],
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Cluster | HardwareList]:
    """Run the command."""
    shown = describe_hardware(hardware)
    return Answer(shown, hardware_text, json, inputs=hardware_files(hardware))
