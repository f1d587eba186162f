"""Out of sample on real recordings: EPLB's map beside `best`, on tokens that neither has seen.

    python benchmarks/placement_recordings.py [RECORDING ...]

Every recording that stands beside the repository (`tests/recordings.py`) and the shipped one, split
in two by time (judged on what came later) and by request (judged on other requests of the same
labels). `imbalance` is of the judged window's sum, mean over layers; `step` what a step waits for
over even, with 16 requests at a time (as recorded where requests are not told apart); `busiest` the
99th percentile of that wait in assignments. The difference is of `best` less EPLB, with its 95 %
interval over requests drawn anew, the same for both maps; without one where steps are as recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from moeprof.errors import MoeprofError
from moeprof.placement import Topology, solve_placement
from moeprof.placement.fitting import fit_placement
from moeprof.placement.replay import Interval, judge_placements
from moeprof.placement.windows import Windows, split_windows
from moeprof.trace import Trace, open_trace
from tests.recordings import READERS, SHIPPED, shared_folder

LAYOUTS = ((4, 0), (8, 0), (8, 8), (16, 16))
BATCH, RESAMPLES = 16, 40


def recordings(names: list[str]) -> Iterator[tuple[str, Trace]]:
    """The shipped recording, and those that stand beside the repository."""
    if not names or "tiny-m3" in names:
        yield "tiny-m3 (shipped)", open_trace(SHIPPED)
    folder = shared_folder()
    for name, read in READERS.items() if folder else ():
        if name != "event-atomic-toy" and (not names or name in names):
            yield name, read(folder)


def windows_of(trace: Trace) -> Iterator[tuple[str, Windows]]:
    """Both splits, where the recording can be split so."""
    for by in ("time", "request"):
        try:
            yield by, split_windows(trace, by=by)
        except MoeprofError:
            continue


def judged(trace: Trace, windows: Windows, topology: Topology) -> tuple[list[float], list[str]]:
    """Relative changes of imbalance and of what steps wait for, and the cells of a row."""
    maps = {
        "eplb": solve_placement(windows.fit_load, topology, solver="eplb"),
        "best": fit_placement(trace, windows, topology),
    }
    try:
        verdict = judge_placements(
            trace, maps, window=windows.test, batch=BATCH, resamples=RESAMPLES
        )
    except MoeprofError:  # requests or phases are not told apart
        verdict = judge_placements(trace, maps, window=windows.test)
    eplb, best = verdict.judgements
    fit = [placement.imbalance(windows.fit_load) for placement in maps.values()]
    cells = [f"{value:.4f}" for value in fit]
    cells += [f"{j.imbalance.value:.4f}" for j in (eplb, best)]
    cells += [difference(best.imbalance_less_first)]
    cells += [f"{j.step_imbalance.value:.3f}" for j in (eplb, best)]
    cells += [difference(best.step_imbalance_less_first)]
    cells += [f"{j.busiest_mean.value:,.0f}" for j in (eplb, best)]
    cells += [f"{j.busiest_p99.value:,.0f}" for j in (eplb, best)]
    changes = [
        float(best.imbalance.value / eplb.imbalance.value - 1),
        float(best.step_imbalance.value / eplb.step_imbalance.value - 1),
        float((best.step_imbalance_less_first.low or 0.0) > 0),
    ]
    return changes, cells


def difference(less: Interval) -> str:
    """'-0.0312 ±0.0108', without the interval where there is none."""
    spread = "" if less.high is None else f" ±{less.high - less.value:.4f}"
    return f"{less.value:+.4f}{spread}"


COLUMNS = [
    ("recording", 18), ("GPUs", 4), ("red.", 4), ("split", 7), ("fit EPLB", 8), ("best", 7),
    ("test EPLB", 9), ("best", 7), ("best - EPLB", 16), ("step EPLB", 9), ("best", 6),
    ("best - EPLB", 16), ("busy EPLB", 9), ("best", 7), ("p99 EPLB", 8), ("best", 7),
]  # fmt: skip


def main() -> None:
    """Print the table and what it comes to."""
    print("  ".join(name.ljust(width) for name, width in COLUMNS))
    changes: dict[str, list[list[float]]] = {}
    for name, trace in recordings(sys.argv[1:]):
        experts = trace.experts_per_layer
        for gpus, redundant in LAYOUTS:
            if (experts + redundant) % gpus:
                continue
            topology = Topology.even(gpus, experts + redundant)
            for by, windows in windows_of(trace):
                change, cells = judged(trace, windows, topology)
                changes.setdefault(name, []).append(change)
                row = [name[:18], str(gpus), str(redundant), by, *cells]
                print("  ".join(c.ljust(w) for c, (_, w) in zip(row, COLUMNS, strict=True)))
                sys.stdout.flush()
    print("\nmean change from EPLB, and rows that are worse (beyond the interval of steps)")
    table = [*changes.items(), ("all", [row for rows in changes.values() for row in rows])]
    for name, rows in table:
        imbalance, step, beyond = np.array(rows).T
        worse = f"{(imbalance > 0).sum()} and {(step > 0).sum()} of {len(rows)}"
        print(
            f"{name:<20} imbalance {imbalance.mean():+.2%}, steps {step.mean():+.2%}; "
            f"worse {worse}, beyond {beyond.sum():.0f}"
        )


if __name__ == "__main__":
    main()
