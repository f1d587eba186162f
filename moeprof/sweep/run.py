"""A grid to its table: points to an executor, rows to disk in order, and the Pareto front."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import MoeprofError
from moeprof.projection.pareto import pareto_front
from moeprof.result import Result
from moeprof.sweep.draft import Draft
from moeprof.sweep.grid import Grid
from moeprof.sweep.point import Row, project_points
from moeprof.sweep.table_file import check_target, write_table

RUN_POINTS = 16  # a task of the executor, and what an interrupt loses
_IN_FLIGHT = 256  # tasks
# Speeds compare between deployments that serve the same model and the same requests.
COMPARABLE = ("model", "input_len", "output_len", "cached_len")

Progress = Callable[[int, int], None]  # done, of


@dataclass(frozen=True)
class Sweep(Result):
    """What came of a grid. `points` are rows of the table, of which `fitting` fit in memory.

    `failed` points are no deployment; `reasons` maps why to how many. `pareto` holds the rows that
    no other row of the same model and requests beats in both tokens/s a GPU and tokens/s a user,
    among those that fit.
    """

    path: str
    points: int
    fitting: int
    failed: int
    reasons: Mapping[str, int] = field(hash=False)
    pareto: list[Row] = field(hash=False)


def sweep_grid(
    grid: Grid,
    output: str | Path,
    *,
    executor: Executor | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Projects every point of `grid` into `output`, `.csv` or `.parquet`.

    Points are computed by `executor`, or here if None; the bytes written are the same. What is done
    stands in `output` + `.partial` until all is, and `resume` goes on from there. Raises InputError
    for an output that exists without `force`, and for a draft as `Draft.open`.
    """
    output = Path(output)
    check_target(output, force=force)
    draft = Draft(output, grid)
    draft.open(resume=resume, force=force)
    for rows in _in_order(grid, draft.done, executor):
        draft.add(rows)
        if progress:
            progress(draft.done, len(grid))
    tally = _Tally()
    write_table(output, map(tally.take, draft.runs()))
    draft.remove()
    return tally.result(output)


def _in_order(grid: Grid, done: int, executor: Executor | None) -> Iterator[list[Row | str]]:
    """Rows from point `done` on, a run at a time, however they are computed."""
    runs = (
        [grid.point(number) for number in range(start, min(start + RUN_POINTS, len(grid)))]
        for start in range(done, len(grid), RUN_POINTS)
    )
    if executor is None:
        yield from map(project_points, runs)
        return
    waiting: deque[Future[list[Row | str]]] = deque()
    try:
        for run in runs:
            waiting.append(executor.submit(project_points, run))
            if len(waiting) >= _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor:
        raise MoeprofError("a worker died, out of memory perhaps: --resume goes on") from None
    finally:
        for future in waiting:
            future.cancel()


class _Tally:
    """Counts, and the front so far, of rows that pass through."""

    def __init__(self) -> None:
        self._points = self._fitting = 0
        self._reasons: dict[str, int] = {}
        self._fronts: dict[tuple[object, ...], list[Row]] = {}

    def take(self, run: list[Row | str]) -> list[Row]:
        """The rows of `run`."""
        rows = [each for each in run if isinstance(each, dict)]
        for why in (each for each in run if isinstance(each, str)):
            self._reasons[why] = self._reasons.get(why, 0) + 1
        fitting = [row for row in rows if row["fits"]]
        for row in fitting:
            key = tuple(row[name] for name in COMPARABLE)
            self._fronts[key] = pareto_front([*self._fronts.get(key, ()), row], _speeds)
        self._points += len(rows)
        self._fitting += len(fitting)
        return rows

    def result(self, output: Path) -> Sweep:
        return Sweep(
            path=str(output),
            points=self._points,
            fitting=self._fitting,
            failed=sum(self._reasons.values()),
            reasons=dict(sorted(self._reasons.items(), key=lambda each: (-each[1], each[0]))),
            pareto=[row for front in self._fronts.values() for row in front],
        )


def _speeds(row: Row) -> tuple[float, float]:
    return row["tok_s_per_user"], row["tok_s_per_gpu"]
