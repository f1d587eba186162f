"""Where points are computed: processes of this machine, or a Dask cluster."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib import import_module

from moeprof.errors import InputError, MissingExtraError


def process_executor(workers: int) -> Executor:
    """`workers` spawned processes that leave Ctrl-C to this one.

    Spawned, since a forked copy of a process with threads may never wake up.
    """
    if workers < 1:
        raise InputError(f"{workers} workers: at least 1 is needed")
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )


def dask_executor(address: str) -> Executor:
    """The cluster whose scheduler listens at `address`, 'tcp://host:8786'.

    Raises MissingExtraError without Dask, and InputError where no scheduler answers.
    """
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise MissingExtraError("distributed", "dask") from None
    try:
        executor: Executor = distributed.Client(address, timeout="10s").get_executor()
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler at {address}: {error}") from None
    return executor
