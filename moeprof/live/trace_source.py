"""A trace as a source: one folder, or a folder of ranks that each write their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moeprof.errors import TraceError
from moeprof.live.join import StepJoin, counting_ranks, dropped_by_reason
from moeprof.live.source import Poll, RankStatus, Shape, State, Status
from moeprof.live.tail import FolderTail
from moeprof.trace.ranks import Rank
from moeprof.trace.schema import MANIFEST

RANKS = "ranks"
STILL_SECONDS = 600.0  # a trace that nobody has written to for so long is shown once


class TraceSource:
    """The trace at `path`, tailed. Raises TraceError where there is none.

    Ends once its writer has closed it; and at once, unless `follow`, where nothing has been
    written for ten minutes.
    """

    def __init__(
        self, path: Path, *, follow: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.name = str(path)
        self._path = path
        self._follow = follow
        self._clock = clock
        self._epoch = 0
        self._errors = 0
        self._polls = 0
        self._tails: dict[Rank, FolderTail] = {}
        self._shape: Shape | None = None
        self._last = Status(State.WAITING)
        if not path.is_dir() and not follow:
            raise TraceError(
                f"{path}: no such trace; live watches a folder that a capture writes, or the "
                "http:// address of a server with the plugin; --follow waits for it"
            )
        if not rank_folders(path) and not (path / RANKS).is_dir() and not follow:
            raise TraceError(f"{path}: not a trace, it has no {MANIFEST}")
        self._find_ranks()

    def poll(self) -> Poll:
        """What was written since the last poll."""
        try:
            return self._poll()
        except (TraceError, OSError) as error:
            self._errors += 1
            reason = str(error).splitlines()[0]
            self._last = replace(self._last, state=State.GONE, words=reason, errors=self._errors)
            return Poll(self._last)

    def close(self) -> None:
        """Let go of all files."""
        for tail in self._tails.values():
            tail.close()

    def _poll(self) -> Poll:
        self._find_ranks()
        first = not self._polls
        self._polls += 1
        reads = {rank: tail.read() for rank, tail in self._tails.items()}
        behind = any(read.behind for read in reads.values())
        ended = self._ended(first) and not behind
        for number, read in enumerate(reads.values()):
            for rows in read.rows:
                self._join.push(number, rows)
        idle = not any(read.rows for read in reads.values())
        steps = self._join.take(self._clock(), rest=ended or idle) if reads else []
        counts = [
            self._join.widened(number, counts)
            for number, read in enumerate(reads.values())
            for counts in read.counts
        ]
        self._last = self._status(ended)
        return Poll(self._last, steps, counts, behind)

    def _find_ranks(self) -> None:
        """Open the folders that are new. With another rank the layers of all may be others."""
        found = rank_folders(self._path)
        for rank in [rank for rank, tail in self._tails.items() if tail.is_replaced()]:
            self._tails.pop(rank).close()
        new = {rank: folder for rank, folder in found.items() if rank not in self._tails}
        if not new:
            return
        for rank, folder in new.items():
            self._tails[rank] = FolderTail(folder)
        self._tails = dict(sorted(self._tails.items()))
        self._epoch += 1
        manifests = [tail.manifest for tail in self._tails.values()]
        layers = sorted({layer for manifest in manifests for layer in manifest.layers})
        if len({(manifest.experts, manifest.top_k) for manifest in manifests}) > 1:
            raise TraceError(f"{self._path}: its ranks differ in experts or top-k")
        self._shape = Shape(tuple(layers), manifests[0].experts, manifests[0].top_k)
        self._join = StepJoin(
            list(self._tails), [manifest.layers for manifest in manifests], self._shape
        )

    def _ended(self, first: bool) -> bool:
        tails = self._tails.values()
        if tails and all(tail.manifest.complete for tail in tails):
            return True
        return first and not self._follow and self._still_s() > STILL_SECONDS

    def _still_s(self) -> float:
        """Seconds since anything was written."""
        last = max((tail.last_write_s() for tail in self._tails.values()), default=0.0)
        return max(0.0, self._clock() - last) if self._tails else 0.0

    def _status(self, ended: bool) -> Status:
        tails = self._tails
        if not tails:
            return Status(State.WAITING, "nothing has begun to write there")
        counting = dict(zip(tails, counting_ranks(list(tails)), strict=True))
        counted = [tail for rank, tail in tails.items() if counting[rank]]
        manifest = next(iter(tails.values())).manifest
        state = State.ENDED if ended else State.RECORDING
        return Status(
            state=state,
            words=self._words(ended),
            epoch=self._epoch,
            shape=self._shape,
            model=str(manifest.model.get("name", "")),
            engine=f"{manifest.engine} {manifest.engine_version}".strip(),
            tokens=sum(tail.tokens for tail in counted),
            prefill_tokens=sum(tail.prefill for tail in counted),
            decode_tokens=sum(tail.decode for tail in counted),
            dropped=dropped_by_reason((r, tail.manifest.dropped) for r, tail in tails.items()),
            sampled_out=sum(tail.manifest.tokens_sampled_out for tail in counted),
            rotated=sum(tail.manifest.rotated_tokens for tail in counted),
            written_bytes=sum(tail.written_bytes() for tail in tails.values()),
            ranks=tuple(_rank_status(rank, tail) for rank, tail in tails.items())
            if len(tails) > 1
            else (),
            errors=self._errors,
        )

    def _words(self, ended: bool) -> str:
        problems = [tail.problem for tail in self._tails.values() if tail.problem]
        if problems:
            return problems[0]
        still = self._still_s()
        if not ended:
            return f"nothing was written for {duration(still)}" if still > 5 else ""
        if all(tail.manifest.complete for tail in self._tails.values()):
            return "the recording has ended"
        return f"its writer did not close it and has written nothing for {duration(still)}"


def rank_folders(path: Path) -> dict[Rank, Path]:
    """The traces below `path` by rank: itself, or those of its ranks that have a manifest."""
    if not (path / RANKS).is_dir():
        return {Rank(): path} if (path / MANIFEST).exists() else {}
    found = {}
    for folder in sorted((path / RANKS).iterdir()):
        rank = Rank.parse(folder.name)
        if rank is not None and (folder / MANIFEST).exists():
            found[rank] = folder
    return found


def duration(seconds: float) -> str:
    """'12 s', '4 min' or '3 h'."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _rank_status(rank: Rank, tail: FolderTail) -> RankStatus:
    return RankStatus(
        name=str(rank),
        writes=True,
        recording=not tail.manifest.complete,
        tokens=tail.tokens,
        dropped=sum(tail.manifest.dropped.values()),
        pending_bytes=None,
        error=tail.problem or None,
    )
