"""The sections of the page, in order. A new one is a file with one function, and an entry here.

A section is a pure function ReportContents -> Section, or None where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable

from moeprof.report.blocks import Section
from moeprof.report.contents import ReportContents
from moeprof.report.sections.advice import advice_section
from moeprof.report.sections.affinity import affinity_section
from moeprof.report.sections.definitions import definitions_section
from moeprof.report.sections.imbalance import imbalance_section
from moeprof.report.sections.load import load_section
from moeprof.report.sections.locality import locality_section
from moeprof.report.sections.memory import memory_section
from moeprof.report.sections.miss_ratio import miss_ratio_section
from moeprof.report.sections.offload import offload_section
from moeprof.report.sections.origin import origin_section
from moeprof.report.sections.placement import placement_section
from moeprof.report.sections.policies import policies_section
from moeprof.report.sections.specialization import specialization_section
from moeprof.report.sections.speed import speed_section
from moeprof.report.sections.trade_offs import trade_offs_section

SECTIONS: tuple[Callable[[ReportContents], Section | None], ...] = (
    load_section,
    imbalance_section,
    locality_section,
    affinity_section,
    specialization_section,
    miss_ratio_section,
    policies_section,
    offload_section,
    placement_section,
    memory_section,
    speed_section,
    trade_offs_section,
    advice_section,
    definitions_section,
    origin_section,
)


def sections_of(contents: ReportContents) -> list[Section]:
    """Every section that has something to say, in order."""
    return [section for make in SECTIONS if (section := make(contents)) is not None]
