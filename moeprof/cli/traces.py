"""Opening the trace that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import warn
from moeprof.errors import MoeprofError
from moeprof.report.sampled import rotated_words, sampled_words
from moeprof.trace import Trace, describe_trace, open_trace, shorten_labels

TraceArgument = Annotated[
    Path, typer.Argument(metavar="T", help="A trace folder or an importable file.")
]
LabelPartsFlag = Annotated[
    int | None,
    typer.Option("--label-parts", metavar="N", help="The first N parts of labels, split at '/'."),
]


def open_noted(path: Path, quiet: bool) -> Trace:
    """The trace at `path`; how a foreign file was read goes to stderr."""
    trace = open_trace(path)
    for note in trace.notes:
        warn(f"{path}: {note}", quiet=quiet)
    return trace


def open_and_warn(path: Path, quiet: bool, *, label_parts: int | None = None) -> Trace:
    """The trace at `path`; what is missing, left out or damaged in it goes to stderr.

    With `label_parts` only so many parts of each label count.
    """
    trace = open_noted(path, quiet)
    if trace.manifest.sampling or trace.manifest.rotated_tokens:
        info = describe_trace(trace)
        for words in filter(None, (sampled_words(info), rotated_words(info))):
            warn(f"{path}: {words}; results are of what is left", quiet=quiet)
    for problem in trace.problems:
        warn(f"{path}: {problem}", quiet=quiet)
    return trace if label_parts is None else shorten_labels(trace, label_parts)


def share_error(trace: Trace) -> float | None:
    """What sampling requests left uncertain: the mean relative standard error of experts' loads.

    None where every request was to be recorded, or nothing was.
    """
    from moeprof.analysis import sampling_error

    if trace.manifest.sampling is None or trace.counts_only:
        return None
    try:
        return sampling_error(trace).mean_share_error
    except MoeprofError:  # no request was kept
        return None
