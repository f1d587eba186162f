"""A timeline as Chrome's trace JSON, which ui.perfetto.dev opens.

The format is that of "Trace Event Format" (Google): complete events, ph X, with ts and dur in
microseconds, and metadata events, ph M, that name the tracks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moeprof.offload import KINDS, TRACKS, OffloadPlan, draw_timeline
from moeprof.trace.formats.exporting import whole_file


def write_perfetto(
    plan: OffloadPlan, path: str | Path, *, steps: int = 4, force: bool = False
) -> None:
    """Write the first `steps` of `plan` to `path`, whole or not at all.

    Raises InputError where the file is there already and `force` is false.
    """
    document = {
        "displayTimeUnit": "ms",
        "otherData": {
            "model": plan.model,
            "hardware": plan.hardware,
            "policy": plan.policy,
            "provenance": plan.provenance.value,
        },
        "traceEvents": [*_tracks(plan), *timeline_events(plan, steps)],
    }
    with whole_file(Path(path), force) as file:
        file.write(json.dumps(document, allow_nan=False).encode())


def timeline_events(plan: OffloadPlan, steps: int) -> list[dict[str, Any]]:
    """A complete event a slice, with counts and bytes of its layer's event in `args`."""
    slices = draw_timeline(plan, steps)
    names = slices.dtype.names or ()
    return [_event(plan, dict(zip(names, row, strict=True))) for row in slices.tolist()]


def _event(plan: OffloadPlan, slice: dict[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = {"step": slice["step"]}
    if slice["layer"] >= 0:
        each, missed, copied = plan.work.expert_bytes, slice["missed"], slice["copied"]
        args |= {"layer": plan.moe_layers[slice["layer"]], "experts": slice["needed"]}
        args |= {"misses": missed, "copied_bytes": copied * each}
        args |= {"cpu_bytes": (missed - copied) * each, "drive_bytes": slice["stored"] * each}
    return {
        "name": KINDS[slice["kind"]],
        "ph": "X",
        "ts": 1e6 * slice["start_s"],
        "dur": 1e6 * slice["seconds"],
        "pid": 0,
        "tid": slice["track"],
        "args": args,
    }


def _tracks(plan: OffloadPlan) -> list[dict[str, Any]]:
    named = [("process_name", 0, f"{plan.model} on {plan.hardware}")]
    named += [("thread_name", track, name) for track, name in enumerate(TRACKS)]
    return [
        {"name": what, "ph": "M", "pid": 0, "tid": track, "args": {"name": name}}
        for what, track, name in named
    ]
