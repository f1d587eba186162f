"""A map fitted on a window of a trace, for traffic that is not in the window.

`best` is even to the last assignment on the load it is given, and so fitted to that load's noise:
on real recordings it is then hardly better than EPLB on a later window. With a trace at hand it is
given the loads of parts of the window beside their sum and evens out each of them, which costs a
little where it was fitted and wins more where it is used: benchmarks/placement_recordings.py.
"""

from __future__ import annotations

from typing import Any

from moeprof.placement.place import observe_window
from moeprof.placement.placement import Placement
from moeprof.placement.solve import solve_placement
from moeprof.placement.topology import Topology
from moeprof.placement.windows import Windows
from moeprof.trace import Trace


def fit_placement(
    trace: Trace, windows: Windows, topology: Topology, *, solver: str = "best", **solving: Any
) -> Placement:
    """The map for `windows.fit` of `trace`; solvers see its tokens and the loads of its parts.

    `solving` and what is raised is as `solve_placement` says.
    """
    seen = {} if windows.fit is None else observe_window(trace, windows.fit)
    return solve_placement(windows.fit_load, topology, solver=solver, **(seen | solving))
