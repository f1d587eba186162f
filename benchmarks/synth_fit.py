"""How like each recording is what `synth --like` makes of it? Prints every error, the bad ones too.

    python benchmarks/synth_fit.py [T ...]

Without T: the public recordings beside the repository (shared/traces, or $MOEPROF_SHARED) and the
one that ships. Three tables: fitted to the whole and judged on the whole; fitted to the first half
of every request and judged on the whole, its second half unseen; and, as a yardstick for the
second, the recording's own second halves against its first. Each error is the largest over its
curve: batches that there are requests for, slots from top-k on, tokens apart up to 64.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from moeprof.errors import InputError
from moeprof.report.text.layout import table
from moeprof.synth import FitJudgement, fit_routing, judge_fit
from moeprof.synth.judge import AIMED
from moeprof.synth.schedule import recorded_schedule
from moeprof.trace import TokenRows, Trace, open_trace
from tests.recordings import READERS, SHIPPED, shared_folder

OTHERS = ("distinct by chance", "working set", "repeat by lag")
SEED = 1


def main() -> None:
    """The tables."""
    traces = _traces()
    print("Fitted to the whole, judged on the whole\n")
    _print({name: judge_fit(trace, _like(trace, trace)) for name, trace in traces.items()})
    print("\nFitted to the first half of every request, judged on the whole\n")
    halves = {name: _half(trace, 0) for name, trace in traces.items()}
    _print({name: judge_fit(trace, _like(halves[name], trace)) for name, trace in traces.items()})
    print("\nYardstick: the second half of every request beside the first\n")
    _print({name: judge_fit(halves[name], _half(trace, 1)) for name, trace in traces.items()})


def _traces() -> dict[str, Trace]:
    if sys.argv[1:]:
        return {Path(path).stem: open_trace(path) for path in sys.argv[1:]}
    folder = shared_folder()
    if folder is None:
        print("no shared/traces beside the repository: only the recording that ships\n")
    found = {} if folder is None else {name: read(folder) for name, read in READERS.items()}
    return {**found, SHIPPED.stem: open_trace(SHIPPED)}


def _like(fitted_to: Trace, schedule_of: Trace) -> Trace:
    """Synthetic tokens on the schedule of one trace, routed as in another with the same requests.

    A request in a phase that the other lacks is routed as its other phase.
    """
    fitted = fit_routing(fitted_to, seed=SEED)
    known = {
        (int(r), int(p)): int(profile)
        for r, p, profile in zip(
            fitted_to.request, fitted_to.phase, fitted.schedule.profile, strict=True
        )
    }
    by_request = {request: profile for (request, _), profile in known.items()}
    profile = [
        known.get((r, p), by_request[r])
        for r, p in zip(schedule_of.request.tolist(), schedule_of.phase.tolist(), strict=True)
    ]
    whole = recorded_schedule(schedule_of)
    schedule = replace(whole, profile=np.array(profile, np.int32))
    ids = fitted.routing.draw(schedule, SEED + 1)
    rows = TokenRows(schedule.step, schedule.request, schedule.position, schedule.phase, ids)
    return Trace.in_memory(schedule_of.model, rows, schedule.requests)


def _half(trace: Trace, second: int) -> Trace:
    """The first or second half of every request's tokens; of one token, the first is all."""
    order = np.lexsort((trace.position, trace.request))
    request = trace.request[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(request) != 0]))
    length = np.diff(np.append(starts, len(order)))
    place = np.arange(len(order)) - np.repeat(starts, length)
    late = place >= np.repeat((length + 1) // 2, length)
    keep = np.sort(order[late == bool(second)])
    ids = np.stack([trace.experts(layer)[keep] for layer in trace.layers], axis=1)
    phase = trace.phase[keep]
    rows = TokenRows(trace.step[keep], trace.request[keep], trace.position[keep], phase, ids)
    return Trace.in_memory(trace.model, rows, trace.requests)


def _print(judged: dict[str, FitJudgement]) -> None:
    """A row a recording, a column a figure: the signed difference and where it is."""
    rows = []
    for name, fit in judged.items():
        by_metric = {comparison.metric: comparison for comparison in fit.comparisons}
        cells = []
        for metric in (*AIMED, *OTHERS):
            found = by_metric.get(metric)
            at = "" if found is None or found.at is None else f" @{found.at}"
            cells.append("-" if found is None else f"{found.difference:+.1%}{at}")
        rows.append([name, *cells])
    print(table(["recording", *AIMED, *OTHERS], rows))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
