"""Labels made coarser: `mmlu/physics/easy` read as `mmlu`, so that a label has more requests."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from moeprof.errors import InputError
from moeprof.trace.reader import Trace

SEPARATOR = "/"


def shorten_labels(trace: Trace, parts: int) -> Trace:
    """`trace` with the first `parts` parts of every label, split at '/'; nothing is copied.

    Raises InputError where `parts` is below 1.
    """
    if parts < 1:
        raise InputError(f"label parts = {parts}: at least 1 is needed")
    shortened = copy(trace)
    shortened.requests = tuple(
        request if request.label is None else replace(request, label=_first(request.label, parts))
        for request in trace.requests
    )
    vars(shortened).pop("label_code", None)  # of the longer labels
    vars(shortened).pop("label", None)
    return shortened


def _first(label: str, parts: int) -> str:
    return SEPARATOR.join(label.split(SEPARATOR)[:parts])
