"""Several processes of one launch (torchrun), one trace: every rank records a part of its own.

The parts lie beside the output in a hidden folder, `.NAME.parts/RANK/`, each with a lock that its
process holds as long as it lives. Whoever ends and sees no other alive merges them; nobody talks
over the network, and nobody waits for what may be waiting for him.

What is assumed: the processes of a node share its disk, and RANK, LOCAL_RANK, WORLD_SIZE,
LOCAL_WORLD_SIZE and GROUP_RANK are set as torchrun does. Nodes do not share a trace: each writes
its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from moeprof.capture.failure import logger
from moeprof.errors import InputError, MoeprofError
from moeprof.trace import merge_traces
from moeprof.trace.folder import refuse_existing
from moeprof.trace.schema import FILE_MODE, FOLDER_MODE, MANIFEST, Manifest

WAIT_SECONDS = 60.0  # for other ranks to end, by one that ended well
POLL_SECONDS = 0.1

LOCK = "lock"
DONE = "done"


def numbered(output: Path, number: int) -> Path:
    """Where the `number`-th model goes: run.moetrace, run-2.moetrace, ..."""
    return output if number == 1 else _suffixed(output, str(number))


def _suffixed(output: Path, word: str) -> Path:
    return output.with_name(f"{output.stem}-{word}{output.suffix}")


@dataclass(frozen=True)
class Launch:
    """This process among those that were started with it."""

    rank: int
    local_rank: int
    local_world: int  # processes on this node
    node: int = 0
    restart: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Launch | None:
        """What torchrun says; None for a process of its own."""

        def number(name: str, default: int) -> int:
            value = environment.get(name, "")
            return int(value) if value.isdecimal() else default

        world = number("WORLD_SIZE", 1)
        if world < 2 or "RANK" not in environment:
            return None
        rank = number("RANK", 0)
        return cls(
            rank,
            number("LOCAL_RANK", rank),
            number("LOCAL_WORLD_SIZE", world),
            number("GROUP_RANK", 0),
            number("TORCHELASTIC_RESTART_COUNT", 0),
        )

    def output(self, output: Path) -> Path:
        """The trace of this node and attempt."""
        if self.node:
            output = _suffixed(output, f"node{self.node}")
        if self.restart:
            output = _suffixed(output, f"restart{self.restart}")
        return output


class RankFolder:
    """The part of one process; a context that is open as long as the process counts as alive."""

    def __init__(self, output: Path, launch: Launch) -> None:
        self.launch = launch
        self._output = output
        self._root = output.with_name(f".{output.name}.parts")
        self._folder = self._root / str(launch.local_rank)
        self._lock: TextIO | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._lock = _try_lock(self._folder / LOCK, fcntl.LOCK_EX)
        if self._lock is None:
            raise InputError(f"{self._output} is being recorded into already")
        (self._folder / DONE).unlink(missing_ok=True)
        for left in self._folder.glob("*.moetrace"):  # by a launch that was killed
            shutil.rmtree(left, ignore_errors=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def part(self, number: int) -> Path:
        """Where this process records its `number`-th model."""
        return self._folder / f"{number}.moetrace"

    def gather(self, *, wait: bool, force: bool) -> list[Path] | None:
        """This process is done: merge all parts, unless others go on. The traces, or None.

        With `wait` others get a minute to end: a rank that failed must not hold up the launch,
        which ends them.
        """
        (self._folder / DONE).touch()
        running = self._wait_for_others(WAIT_SECONDS if wait else 0.0)
        if running:
            names = ", ".join(map(str, running))
            logger.info("rank %d is done; ranks %s go on and will merge", self.launch.rank, names)
            return None
        with self._merging() as mine:
            return self._merge(force) if mine else None

    def _wait_for_others(self, seconds: float) -> list[int]:
        """Local ranks that go on for longer than `seconds`.

        One that has not even begun by then never will, if it was waited for at all.
        """
        until = time.monotonic() + seconds
        others = [n for n in range(self.launch.local_world) if n != self.launch.local_rank]
        while self._folder.exists():  # until another has merged
            states = {other: self._state(other) for other in others}
            late = time.monotonic() >= until
            running = [n for n in others if states[n] == "running"]
            missing = [n for n in others if states[n] == "missing"]
            if late or not running + missing:
                return running if seconds else running + missing
            time.sleep(POLL_SECONDS)
        return []

    def _state(self, rank: int) -> str:
        folder = self._root / str(rank)
        if (folder / DONE).exists():
            return "done"
        if not (folder / LOCK).exists():
            return "missing"
        lock = _try_lock(folder / LOCK, fcntl.LOCK_SH)
        if lock is None:
            return "running"
        lock.close()
        return "dead"

    @contextmanager
    def _merging(self) -> Iterator[bool]:
        """Whether it falls to this process: ranks that end at once all see the others done."""
        lock = _try_lock(self._root / LOCK, fcntl.LOCK_EX)
        try:
            yield lock is not None and self._folder.exists()
        finally:
            if lock is not None:
                lock.close()

    def _merge(self, force: bool) -> list[Path] | None:
        dead = [n for n in range(self.launch.local_world) if self._state(n) in ("dead", "missing")]
        if dead:
            names = ", ".join(map(str, dead))
            logger.warning("local rank %s ended early; what it had written is merged", names)
        numbers = sorted({int(part.stem) for part in self._root.glob("*/*.moetrace")})
        merged = [path for number in numbers if (path := self._merge_model(number, force))]
        if len(merged) == len(numbers):
            shutil.rmtree(self._root, ignore_errors=True)
        if not numbers:
            logger.warning("nothing was recorded: no MoE model ran that transformers built")
        return merged

    def _merge_model(self, number: int, force: bool) -> Path | None:
        """One trace of the `number`-th model of every rank."""
        found = sorted(self._root.glob(f"*/{number}.moetrace"), key=lambda p: int(p.parent.name))
        parts = [part for part in found if (part / MANIFEST).is_file()]
        output = numbered(self._output, number)
        try:
            if len(parts) == 1:
                return _put_in_place(parts[0], output, force)
            for problem in merge_traces(parts, output, force=force).problems:
                logger.warning("%s", problem)
        except (MoeprofError, OSError) as error:
            logger.error("%s; the parts are left in %s", error, self._root)
            return None
        return output


def _put_in_place(part: Path, output: Path, force: bool) -> Path:
    """The only part is the trace: nothing need be copied."""
    refuse_existing(output, force)
    if output.exists():
        shutil.rmtree(output)
    if not Manifest.load(part).complete:
        logger.warning("%s was cut off, what of it can be read is kept", part)
    return part.rename(output)


def is_first_of_its_group(model: Any) -> bool:
    """Whether this process records `model`: of ranks that share every token, the first does.

    In a tensor-parallel group all ranks route all tokens, and alike.
    """
    mesh = _tensor_parallel_mesh(model)
    return mesh is None or int(mesh.get_local_rank()) == 0


def group_size(model: Any) -> int:
    """How many ranks share every token of `model`."""
    mesh = _tensor_parallel_mesh(model)
    return 1 if mesh is None else int(mesh.size())


def _tensor_parallel_mesh(model: Any) -> Any:
    mesh = getattr(model, "_device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    return mesh["tp"] if mesh is not None and "tp" in names else None


def _try_lock(path: Path, kind: int) -> TextIO | None:
    """The open file at `path`, locked until it is closed; None if another process has it.

    POSIX locks end with their process and are not inherited by its children.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE), "r+")
    except FileNotFoundError:  # its folder is gone: whoever merged was faster
        return None
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
