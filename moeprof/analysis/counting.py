"""Assignments per group, layer and expert: the one pass over the ids that load is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError, TraceError
from moeprof.threads import map_threads
from moeprof.trace import Phase, Trace

PHASE_NAMES = {Phase.UNKNOWN: "", Phase.PREFILL: "prefill", Phase.DECODE: "decode"}


@dataclass(frozen=True)
class ExpertCounts:
    """What every load of a trace derives from: its assignments by phase, label and time.

    Group i is the tokens of phase `phases[i]` and label `labels[i]`, '' where they have none;
    every group has tokens. A recording of counts has no labels and no windows, and phases only if
    it kept them.
    """

    total: NDArray[np.int64]  # [layers, experts]
    phases: list[str]
    labels: list[str]
    by_group: NDArray[np.int64]  # [groups, layers, experts]
    by_window: NDArray[np.int64]  # [windows, layers, experts], of consecutive tokens
    window_tokens: int

    def by_phase(self) -> dict[str, NDArray[np.int64]]:
        """[layers, experts] of each phase's tokens, by its name."""
        return _summed(self.phases, self.by_group)

    def by_label(self) -> dict[str, NDArray[np.int64]]:
        """[layers, experts] of each label's tokens, by its name."""
        return _summed(self.labels, self.by_group)


def count_experts(trace: Trace, windows: int) -> ExpertCounts:
    """The assignments of `trace` by group and in at most `windows` windows.

    Raises InputError on an empty trace or on no windows, TraceError on a damaged one.
    """
    if windows < 1:
        raise InputError(f"windows = {windows}: at least 1 is needed")
    if trace.counts_only:
        return _of_counts(trace)
    if not trace.tokens:
        raise InputError(f"{trace}: holds no tokens")
    phases, labels, group = _token_groups(trace)
    by_group = count_assignments(trace, group, len(phases))
    window_tokens = -(-trace.tokens // windows)
    window = (np.arange(trace.tokens) // window_tokens).astype(np.int32)
    by_window = count_assignments(trace, window, int(window[-1]) + 1)
    return ExpertCounts(by_group.sum(axis=0), phases, labels, by_group, by_window, window_tokens)


def _of_counts(trace: Trace) -> ExpertCounts:
    """What a recording of counts tells: the load, and that of phases where it kept them."""
    total = expert_load(trace)
    loads = {PHASE_NAMES[phase]: load for phase, load in trace.counts_by_phase.items()}
    names = [name for name in loads if name]
    by_group = np.stack([loads[name] for name in names]) if names else total[None][:0]
    return ExpertCounts(total, names, [""] * len(names), by_group, total[None][:0], 0)


def count_assignments(trace: Trace, group: NDArray[np.int32], groups: int) -> NDArray[np.int64]:
    """[groups, layers, experts] assignments of the tokens of each group.

    `group` [tokens] holds each token's group below `groups`. Layers run on threads of their own.
    """
    layers = map_threads(lambda n: count_layer(trace, n, group, groups), trace.layers)
    return np.stack(layers, axis=1)


def count_layer(
    trace: Trace, layer: int, group: NDArray[np.int32], groups: int
) -> NDArray[np.int64]:
    """[groups, experts] assignments of one layer; TraceError where an id names no expert."""
    from moeprof.analysis.kernels import add_assignments  # Numba costs a second to import

    counts = np.zeros((groups, trace.experts_per_layer), np.int64)
    foreign = 0
    for part in trace.batches(layer):
        rows = group[part.start : part.start + len(part.experts)]
        if part.recorded is None:
            foreign += add_assignments(part.experts, rows, counts)
        else:
            foreign += add_assignments(part.experts[part.recorded], rows[part.recorded], counts)
    refuse_foreign_ids(trace, layer, foreign)
    return counts


def refuse_foreign_ids(trace: Trace, layer: int, ids: int) -> None:
    """Raise TraceError if a kernel met `ids` > 0 expert ids in `layer` that name no expert."""
    if not ids:
        return
    what = f"{ids:,} expert ids are" if ids > 1 else "an expert id is"
    remedy = (
        f"see moeprof validate {trace.path}" if trace.path else "look at the rows it is made of"
    )
    raise TraceError(
        f"{trace}: in layer {layer} {what} not below {trace.experts_per_layer}, the number of "
        f"experts: the recording is damaged, {remedy}"
    )


def expert_load(trace: Trace) -> NDArray[np.int64]:
    """[layers, experts] assignments of the whole trace."""
    if trace.counts_only:
        none = np.zeros((len(trace.layers), trace.experts_per_layer), np.int64)
        return np.asarray(sum(trace.counts_by_phase.values(), start=none))
    whole: NDArray[np.int64] = count_assignments(trace, np.zeros(trace.tokens, np.int32), 1)[0]
    return whole


def _token_groups(trace: Trace) -> tuple[list[str], list[str], NDArray[np.int32]]:
    """Phase and label of every group that has tokens, and [tokens] the group of each."""
    labels = ["", *trace.labels]
    code = trace.phase.astype(np.int64) * len(labels) + trace.label_code + 1  # -1 is no label
    present, group = np.unique(code, return_inverse=True)
    phases = [PHASE_NAMES[Phase(int(value) // len(labels))] for value in present]
    return phases, [labels[int(value) % len(labels)] for value in present], group.astype(np.int32)


def _summed(names: Iterable[str], loads: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The sum of the loads under each name, in order of name; '' is no name."""
    sums: dict[str, NDArray[np.int64]] = {}
    for name, load in zip(names, loads, strict=True):
        sums[name] = sums[name] + load if name in sums else load
    return {name: sums[name] for name in sorted(sums) if name}
