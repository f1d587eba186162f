"""What a placement buys, on tokens that it was not fitted on.

Ranks meet in a collective once a layer, so a step waits for the busiest rank of every layer in
turn: with n[l, r, s] the assignments of rank r in layer l of step s,

    waited(s) = sum over l of max over r of n[l, r, s]
    even(s)   = sum over l of mean over r of n[l, r, s]

`busiest_mean` and `busiest_p99` are of waited(s) over steps, `step_imbalance` is
sum waited / sum even. `imbalance` is that of the loads summed over steps, mean over layers, as EPLB
is scored: it is what remains when chance within a batch has averaged out, and no step is as even.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement.placement import Placement
from moeprof.placement.replay.interval import Interval
from moeprof.placement.replay.load import RankLoads, RoutedIds, Share, parse_share, replay_ranks
from moeprof.placement.replay.steps import batched_steps, judged_requests, recorded_steps
from moeprof.result import NOT_JSON, Result
from moeprof.trace import Batching, Phase, Trace
from moeprof.trace.batching import RequestRows

RESAMPLES = 100
_WORK = 2_000_000_000  # assignments that all resamples together may replay
_FEWEST = 20  # resamples: fewer do not give a standard error


@dataclass(frozen=True)
class PlacementJudgement(Result):
    """One placement on the judged window. Loads are in assignments."""

    name: str
    imbalance: Interval
    step_imbalance: Interval
    busiest_mean: Interval  # a step, summed over layers
    busiest_p99: Interval
    imbalance_by_layer: list[float]
    # this placement's figures less those of the first one, on the same drawn requests
    imbalance_less_first: Interval
    step_imbalance_less_first: Interval
    rank_load: NDArray[np.float64] = field(repr=False, metadata=NOT_JSON)  # [layers, gpus]
    waited: NDArray[np.float64] = field(repr=False, metadata=NOT_JSON)  # [steps]


@dataclass(frozen=True)
class PlacementJudgements(Result):
    """Several placements on the same tokens in the same steps."""

    judgements: list[PlacementJudgement]
    tokens: int
    requests: int | None  # None where the steps are as recorded
    steps: int
    batch: int | None  # requests at a time; None: as recorded
    even_mean: float  # busiest rank of a step, were every layer even
    share: Share
    phase: str
    resamples: int
    seed: int


def judge_placements(
    trace: Trace,
    placements: Mapping[str, Placement],
    *,
    window: NDArray[np.bool_] | None = None,
    batch: int | None = None,
    phase: Phase | None = None,
    share: Share | str = Share.EQUAL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PlacementJudgements:
    """Replay the tokens of `window` [tokens] (None: all) through every placement.

    With `batch`, that many requests run at a time (`moeprof.trace.rebatch`), and intervals are
    over `resamples` samples of the requests, batched anew each, or as many as a bounded time
    allows; otherwise steps are as recorded and there are no intervals.

    Raises InputError where nothing is left to judge or a placement is of another model, TraceError
    where the recording is damaged or does not say its requests.
    """
    if not placements:
        raise InputError("no placement to judge")
    share = parse_share(share)
    requests = None if batch is None else judged_requests(trace, window)
    if requests is None or batch is None:
        steps = recorded_steps(trace, window, phase)
    else:
        steps = batched_steps(trace, requests, batch, phase)
    ids = RoutedIds.of(trace)
    maps = list(placements.values())
    loads = [replay_ranks(ids, steps, placement, share) for placement in maps]
    drawn = np.zeros((0, len(maps), len(_FIGURES)))
    if requests is not None and batch is not None and resamples:
        count = _affordable(resamples, len(steps.order) * len(trace.layers) * trace.top_k)
        samples = _samples(trace, requests, batch, phase, count, seed)
        drawn = np.array(
            [
                [_figures(replay_ranks(ids, sample, placement, share)) for placement in maps]
                for sample in samples
            ]
        ).reshape(-1, len(maps), len(_FIGURES))
    return PlacementJudgements(
        judgements=[_judgement(name, loads, drawn, place) for place, name in enumerate(placements)],
        tokens=len(steps.order),
        requests=None if requests is None else len(requests.prompt),
        steps=len(steps.starts) - 1,
        batch=batch,
        even_mean=float(loads[0].even().mean()),
        share=share,
        phase="all" if phase is None else phase.name.lower(),
        resamples=len(drawn),
        seed=seed,
    )


def _affordable(resamples: int, assignments: int) -> int:
    return min(resamples, max(_FEWEST, _WORK // max(assignments, 1)))


def _samples(
    trace: Trace, requests: RequestRows, batch: int, phase: Phase | None, count: int, seed: int
) -> Iterator[Batching]:
    """The steps of `count` samples of the requests; none where there is one request alone."""
    number = len(requests.prompt)
    rng = np.random.default_rng(seed)
    for _ in range(count if number > 1 else 0):
        drawn = requests.drawn(rng.integers(number, size=number))
        yield batched_steps(trace, drawn, batch, phase)


_FIGURES = ("imbalance", "step_imbalance", "busiest_mean", "busiest_p99")
_LEAST = (1.0, 1.0, 0.0, 0.0)


def _figures(loads: RankLoads) -> tuple[float, ...]:
    """In the order of `_FIGURES`."""
    waited = loads.waited()
    return (
        float(loads.imbalance_by_layer().mean()),
        float(waited.sum() / loads.even().sum()),
        float(waited.mean()),
        float(np.percentile(waited, 99)),
    )


def _judgement(
    name: str, loads: list[RankLoads], drawn: NDArray[np.float64], place: int
) -> PlacementJudgement:
    values, first = _figures(loads[place]), _figures(loads[0])
    spread = drawn[:, place]
    less = spread - drawn[:, 0]
    intervals = {
        figure: Interval.of(values[i], spread[:, i], _LEAST[i]) for i, figure in enumerate(_FIGURES)
    }
    return PlacementJudgement(
        name=name,
        **intervals,
        imbalance_by_layer=loads[place].imbalance_by_layer().tolist(),
        imbalance_less_first=Interval.of(values[0] - first[0], less[:, 0]),
        step_imbalance_less_first=Interval.of(values[1] - first[1], less[:, 1]),
        rank_load=loads[place].total,
        waited=loads[place].waited(),
    )
