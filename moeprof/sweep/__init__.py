"""Thousands of deployments at once: a grid, any executor, a table, and its Pareto front."""

from moeprof.sweep.executors import dask_executor, process_executor
from moeprof.sweep.grid import AXES, Grid, make_grid, read_grid
from moeprof.sweep.run import Sweep, sweep_grid

__all__ = [
    "AXES",
    "Grid",
    "Sweep",
    "dask_executor",
    "make_grid",
    "process_executor",
    "read_grid",
    "sweep_grid",
]
