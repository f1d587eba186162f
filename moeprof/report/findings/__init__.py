"""What it all means, in sentences: the top of the page, the end of a command.

Every finding is a pure function of the contents, one entry in FINDINGS. A headline states a number
with its unit; the meaning says what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moeprof.report.contents import ReportContents
from moeprof.report.findings.deployment import advised, bound, memory, speed
from moeprof.report.findings.finding import Finding
from moeprof.report.findings.recording import extent, partial, problems, transfer
from moeprof.report.findings.reuse import cache, cliff, repeat
from moeprof.report.findings.routing import domains, gpus, imbalance, next_layer

FINDINGS: tuple[Callable[[ReportContents], Iterator[Finding]], ...] = (
    problems,
    transfer,
    partial,
    extent,
    imbalance,
    gpus,
    repeat,
    next_layer,
    domains,
    cache,
    cliff,
    memory,
    speed,
    advised,
    bound,
)

__all__ = ["FINDINGS", "Finding", "find_all"]


def find_all(contents: ReportContents) -> list[Finding]:
    """All findings of `contents`, problems first."""
    return [finding for find in FINDINGS for finding in find(contents)]
