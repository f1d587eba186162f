"""Project every deployment of a grid, and pick those that no other beats.

GRID.toml gives each axis a value or a list of them; the product is projected. docs/sweep.md has the
axes. What is done survives an interrupt, and --resume goes on from there.
"""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.errors import InputError
from moeprof.hardware import hardware_files
from moeprof.report.text.grid_sweep import grid_sweep_text
from moeprof.sweep import Grid, Sweep, dask_executor, process_executor, read_grid, sweep_grid


def run(
    grid: Annotated[Path, typer.Argument(metavar="GRID.toml")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="F", help="Table: .csv or .parquet.")
    ],
    workers: Annotated[int, typer.Option(metavar="N", help="Processes.")] = 1,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler: tcp://host:8786.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted sweep ended.")
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Sweep]:
    """Run the command."""
    axes = read_grid(grid)
    progress = Progress(quiet=quiet)
    with _executor(workers, dask) as executor, progress.stage(f"{len(axes):,} points") as report:
        done = sweep_grid(
            axes, output, executor=executor, resume=resume, force=force, progress=report
        )
    return Answer(done, grid_sweep_text, json, inputs=[grid, *_files(axes)])


def _executor(workers: int, dask: str | None) -> AbstractContextManager[Executor | None]:
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    if dask is not None:
        if workers > 1:
            raise InputError("--workers and --dask exclude each other")
        return dask_executor(dask)
    return nullcontext() if workers == 1 else process_executor(workers)


def _files(axes: Grid) -> list[Path]:
    models = files_of(*map(str, axes.values["model"]))
    machines = (hardware_files(str(name)) for name in axes.values["hardware"])
    return [*models, *(file for each in machines for file in each)]
