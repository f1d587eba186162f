"""The points that are done, on disk as they come: what an interrupted sweep goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.sweep.grid import Grid
from moeprof.sweep.point import Row


class Draft:
    """A file beside the output: a line that names the grid, then one line a run of points.

    A line that was cut off is dropped when the file is opened again.
    """

    def __init__(self, output: Path, grid: Grid) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self._grid = grid
        self.done = 0  # points

    def open(self, *, resume: bool, force: bool) -> None:
        """Start anew, or behind the last whole line where `resume` is true.

        Raises InputError where a draft is there and neither flag says what to do with it, and where
        it is of another grid.
        """
        head = json.dumps({"grid": self._grid.fingerprint}) + "\n"
        if self.path.exists() and resume:
            self._go_on(head)
        elif self.path.exists() and not force:
            raise InputError(
                f"{self.path} is from an interrupted sweep: --resume goes on, --force starts anew"
            )
        else:
            self.path.write_text(head, encoding="utf-8")

    def _go_on(self, head: str) -> None:
        whole = self.path.read_bytes()
        if not whole.startswith(head.encode()):
            raise InputError(
                f"{self.path} is of another grid or another version of moeprof: --force starts anew"
            )
        kept = whole.rfind(b"\n") + 1
        with self.path.open("r+b") as file:
            file.truncate(kept)
        self.done = sum(len(rows) for rows in self.runs())

    def add(self, rows: list[Row | str]) -> None:
        """The next points."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows, allow_nan=False) + "\n")
        self.done += len(rows)

    def runs(self) -> Iterator[list[Any]]:
        """Every run that was added, in order: rows, and reasons why there is none."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from (json.loads(line) for line in file)

    def remove(self) -> None:
        """When the output stands."""
        self.path.unlink(missing_ok=True)
