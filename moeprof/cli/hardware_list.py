"""List the hardware profiles that come with moeprof."""

from __future__ import annotations

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.hardware import HardwareList, list_hardware
from moeprof.report.text.hardware import hardware_list_text


def run(json: JsonFlag = False, quiet: QuietFlag = False) -> Answer[HardwareList]:
    """Run the command."""
    return Answer(list_hardware(), hardware_list_text, json)
