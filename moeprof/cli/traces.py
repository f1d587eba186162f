"""Opening the trace that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import warn
from moeprof.trace import Trace, open_trace

TraceArgument = Annotated[Path, typer.Argument(metavar="T", help="A trace folder.")]


def open_and_warn(path: Path, quiet: bool) -> Trace:
    """The trace at `path`; what is missing or damaged in it goes to stderr."""
    trace = open_trace(path)
    for problem in trace.problems:
        warn(f"{path}: {problem}", quiet=quiet)
    return trace
