"""Rebalancing while serving: how often, what it moves, and when it pays.

Steps are cut into intervals. The engine starts with experts in order of id; after every interval
the load of the last `window` steps is solved for anew and the experts move, as few as can be
(`moves.aligned`). Beside it stand the map of the start, kept, and the map of the first rebalance,
kept. A rebalance saves, a step,

    saved = waited under the map before - waited under the new one   (assignments, as in replay)

over the interval that follows, and with s seconds an assignment it has paid for its copies after
move seconds / (saved x s) steps. Until then it has cost more than it saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.moves import Moves, aligned, count_moves
from moeprof.placement.placement import Placement
from moeprof.placement.replay.load import RankLoads, RoutedIds, Share, parse_share, replay_ranks
from moeprof.placement.replay.steps import batched_steps, judged_requests, recorded_steps
from moeprof.placement.solve import solve_placement
from moeprof.placement.topology import Topology
from moeprof.quantity import Quantity
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Batching, Phase, Trace


@dataclass(frozen=True)
class Rebalance(Result):
    """One time that the map could change. Imbalances are of the steps that it was solved for."""

    step: int  # before which it happens
    imbalance_before: float
    imbalance_after: float
    expected: float  # assignments that a step would have waited for less on the window solved for
    saved: float  # the same on the interval that followed; negative: it waited for more
    moves: Moves
    pays_after_steps: float | None  # None: never, or no seconds are known
    taken: bool  # False where it was left out because it would not have paid


@dataclass(frozen=True)
class OnlineResult(Result):
    """Rebalancing every `interval` steps, beside two maps that stay."""

    rebalances: list[Rebalance]
    starts: list[int]  # first step of every interval
    # step imbalance, sum waited / sum even, of every interval
    linear: list[float]
    static: list[float]  # from the second interval on, the map of the first rebalance
    online: list[float]
    mean_linear: float  # of all steps after the first interval
    mean_static: float
    mean_online: float
    waited_saved: float  # assignments that steps waited for less than with experts in order
    moved_slots: int
    move_seconds: Quantity | None
    seconds_saved: float | None  # by waiting less, before the moves are paid
    seconds_per_assignment: Quantity | None
    steps: int
    interval: int
    window: int
    batch: int | None
    solver: str
    share: Share
    expert_bytes: int | None
    final: Placement = field(repr=False, metadata=NOT_JSON)


def place_online(
    trace: Trace,
    topology: Topology,
    *,
    interval: int,
    window: int | None = None,
    solver: str = "best",
    batch: int | None = None,
    phase: Phase | None = None,
    share: Share | str = Share.EQUAL,
    expert_bytes: int | None = None,
    seconds_per_assignment: Quantity | None = None,
    only_if_it_pays: bool = False,
    max_imbalance: float | None = None,
    seed: int = 0,
    rounds: int = 100,
) -> OnlineResult:
    """Replay `trace` while the map is solved anew every `interval` steps on the last `window`.

    `window` is one interval if None. `expert_bytes` and the links of `topology` give the seconds of
    moves, `seconds_per_assignment` those of waiting; `only_if_it_pays` leaves out a rebalance that
    on its own window would not save its cost in one interval. `best` starts from the map in use and
    stops at `max_imbalance`: the sooner, the fewer experts move. Raises InputError for what cannot
    be cut into two intervals, and as `solve_placement` does.
    """
    steps = _steps(trace, batch, phase)
    count = len(steps.starts) - 1
    if not 0 < interval < count:
        raise InputError(f"interval {interval}: the recording has {count} steps; give 1 to fewer")
    window = interval if window is None else window
    if window < 1:
        raise InputError(f"window {window}: the last steps to solve for, 1 at least")
    if only_if_it_pays and seconds_per_assignment is None:
        raise InputError("only what pays: name the hardware, whose seconds decide")
    run = _Run(
        RoutedIds.of(trace),
        steps,
        parse_share(share),
        expert_bytes,
        seconds_per_assignment,
        lambda load, before: _solve(load, before, solver, seed, rounds, max_imbalance),
    )
    starts = list(range(0, count, interval))
    even = np.ones((len(trace.layers), trace.experts_per_layer))
    linear = solve_placement(even, topology, solver="linear")
    maps, rebalances = [linear], []
    for start in starts[1:]:
        after, made = run.rebalance(maps[-1], start, window, interval, only_if_it_pays)
        maps.append(after)
        rebalances.append(made)
    kept = {"linear": [linear], "static": [linear, maps[1]], "online": maps}
    loads = {
        name: [
            run.loads(used[min(i, len(used) - 1)], s, s + interval) for i, s in enumerate(starts)
        ]
        for name, used in kept.items()
    }
    return _result(
        run, rebalances, starts, loads, (interval, window), batch, solver, final=maps[-1]
    )


def _steps(trace: Trace, batch: int | None, phase: Phase | None) -> Batching:
    if batch is None:
        return recorded_steps(trace, phase=phase)
    return batched_steps(trace, judged_requests(trace), batch, phase)


def _solve(
    load: NDArray[np.int64],
    before: Placement,
    solver: str,
    seed: int,
    rounds: int,
    max_imbalance: float | None,
) -> Placement:
    """The new map, handed to the GPUs that hold most of it already."""
    fresh = solve_placement(
        load,
        before.topology,
        solver=solver,
        seed=seed,
        rounds=rounds,
        max_imbalance=max_imbalance,
        before=before if solver == "best" and not before.duplicates else None,
    )
    return aligned(fresh, before)


@dataclass(frozen=True)
class _Run:
    """What every rebalance of one call shares."""

    ids: RoutedIds
    steps: Batching
    share: Share
    expert_bytes: int | None
    seconds: Quantity | None
    solve: Callable[[NDArray[np.int64], Placement], Placement]

    def loads(self, placement: Placement, first: int, stop: int) -> RankLoads:
        """Steps first to stop under `placement`."""
        return replay_ranks(self.ids, self._part(first, stop), placement, self.share)

    def _part(self, first: int, stop: int) -> Batching:
        starts = self.steps.starts[max(first, 0) : stop + 1]
        return Batching(self.steps.order[starts[0] : starts[-1]], starts - starts[0])

    def expert_load(self, first: int, stop: int) -> NDArray[np.int64]:
        """[layers, experts] assignments in steps first to stop."""
        rows = self._part(first, stop).order
        experts = self.ids.trace.experts_per_layer
        counts = []
        for ids, place in zip(self.ids.experts, self.ids.place, strict=True):
            here = rows if place is None else place[rows][place[rows] >= 0]
            counts.append(np.bincount(ids[here].ravel(), minlength=experts))
        return np.stack(counts)

    def rebalance(
        self, before: Placement, start: int, window: int, interval: int, only_if_it_pays: bool
    ) -> tuple[Placement, Rebalance]:
        """The map from step `start` on, and what changing to it brought."""
        load = self.expert_load(start - window, start)
        after = self.solve(load, before)
        moves = count_moves(after, before, self.expert_bytes)
        expected = self._saved(before, after, start - window, start)
        saved = self._saved(before, after, start, start + interval)
        taken = not only_if_it_pays or self._pays(expected, moves, interval)
        made = Rebalance(
            step=start,
            imbalance_before=before.imbalance(load),
            imbalance_after=after.imbalance(load),
            expected=expected,
            saved=saved,
            moves=moves,
            pays_after_steps=self._pays_after(saved, moves),
            taken=taken,
        )
        return after if taken else before, made

    def _saved(self, before: Placement, after: Placement, first: int, stop: int) -> float:
        waits = [self.loads(placement, first, stop).waited() for placement in (before, after)]
        return float(waits[0].mean() - waits[1].mean())

    def _pays(self, expected: float, moves: Moves, interval: int) -> bool:
        steps = self._pays_after(expected, moves)
        return steps is not None and steps <= interval

    def _pays_after(self, saved: float, moves: Moves) -> float | None:
        if self.seconds is None or moves.seconds is None or saved <= 0:
            return None
        return moves.seconds.value / (saved * self.seconds.value)


def _result(
    run: _Run,
    rebalances: list[Rebalance],
    starts: list[int],
    loads: dict[str, list[RankLoads]],
    sizes: tuple[int, int],
    batch: int | None,
    solver: str,
    final: Placement,
) -> OnlineResult:
    over_time = {name: [_imbalance([part]) for part in parts] for name, parts in loads.items()}
    later = {name: _imbalance(parts[1:]) for name, parts in loads.items()}
    waited = {name: sum(float(p.waited().sum()) for p in parts) for name, parts in loads.items()}
    saved = waited["linear"] - waited["online"]
    taken = [made.moves for made in rebalances if made.taken]
    return OnlineResult(
        rebalances=rebalances,
        starts=starts,
        linear=over_time["linear"],
        static=over_time["static"],
        online=over_time["online"],
        mean_linear=later["linear"],
        mean_static=later["static"],
        mean_online=later["online"],
        waited_saved=saved,
        moved_slots=sum(moves.slots for moves in taken),
        move_seconds=_total([moves.seconds for moves in taken]),
        seconds_saved=None if run.seconds is None else saved * run.seconds.value,
        seconds_per_assignment=run.seconds,
        steps=len(run.steps.starts) - 1,
        interval=sizes[0],
        window=sizes[1],
        batch=batch,
        solver=solver,
        share=run.share,
        expert_bytes=run.expert_bytes,
        final=final,
    )


def _imbalance(parts: list[RankLoads]) -> float:
    """What steps waited for over what they would have waited for, were every layer even."""
    return float(sum(p.waited().sum() for p in parts) / sum(p.even().sum() for p in parts))


def _total(seconds: list[Quantity | None]) -> Quantity | None:
    from moeprof.quantity import total

    known = [value for value in seconds if value is not None]
    return total(known) if known and len(known) == len(seconds) else None
