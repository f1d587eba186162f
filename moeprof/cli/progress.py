"""Progress on stderr: a bar on a terminal, a line a stage elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]  # done, of
_WIDTH = 24


class Progress:
    """Numbered stages, each with the seconds it took."""

    def __init__(self, stages: int = 1, *, quiet: bool = False) -> None:
        self._stages = stages
        self._stage = 0
        self._quiet = quiet
        self._live = sys.stderr.isatty()

    @contextmanager
    def stage(self, title: str) -> Iterator[Report]:
        """Show `title` while the body runs; what it yields draws the bar."""
        self._stage += 1
        number = f"[{self._stage}/{self._stages}] " if self._stages > 1 else ""
        started = time.monotonic()
        self._write(f"{number}{title} ...", live=self._live)
        yield lambda done, of: self._bar(f"{number}{title}", done, of, time.monotonic() - started)
        seconds = time.monotonic() - started
        self._write(f"{number}{title} ... {seconds:.1f} s", live=False)

    def _bar(self, title: str, done: int, of: int, seconds: float) -> None:
        if self._live:
            filled = _WIDTH * done // max(of, 1)
            bar = "█" * filled + "░" * (_WIDTH - filled)
            rate = f" {done / seconds:.3g}/s" if seconds > 1 else ""  # a rate of a moment jumps
            self._write(f"{title} {bar} {done}/{of}{rate}", live=True)

    def _write(self, line: str, *, live: bool) -> None:
        """One line; a live one is written over by the next."""
        if self._quiet:
            return
        clear = "\r\x1b[K" if self._live else ""
        sys.stderr.write(f"{clear}{line}" + ("" if live else "\n"))
        sys.stderr.flush()
