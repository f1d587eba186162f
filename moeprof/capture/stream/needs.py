"""What a run takes of memory and disk, said before it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from moeprof.errors import InfeasibleError

GIB = 1 << 30
TOKENS_TOGETHER = 16384  # more in one micro-batch gains nothing


@dataclass(frozen=True)
class Needs:
    """Bytes that stay, whatever the batch, and what its tokens add."""

    process_bytes: int  # before anything is read
    frame_bytes: int  # embeddings, and what else stands beside the layers
    layer_bytes: int  # the largest layer, as it computes
    reading_bytes: int  # beside it, between disk and place, at least
    stored_bytes: int  # of the largest layer on disk: more is not read ahead
    host_bytes: int  # free beside the budget, for reading, where that is a GPU's; else 0
    token_bytes: int  # of activations a token
    pair_bytes: int  # of attention a pair of tokens of one sequence
    budget_bytes: int
    batch_size: int | None = None  # texts that may run together at most

    @property
    def fixed_bytes(self) -> int:
        """What a run takes without a token."""
        reading = 0 if self.host_bytes else self.reading_bytes
        return self.process_bytes + self.frame_bytes + self.layer_bytes + reading

    @property
    def ahead_bytes(self) -> int:
        """Memory of what is read before its layer's turn: of what is left over, half."""
        over = self.host_bytes or max(0, self.budget_bytes - self.fixed_bytes)
        return self.reading_bytes + min(over // 2, self.stored_bytes)

    @property
    def room_bytes(self) -> int:
        """What is left for tokens."""
        ahead = 0 if self.host_bytes else self.ahead_bytes - self.reading_bytes
        return self.budget_bytes - self.fixed_bytes - ahead

    def sequence_bytes(self, length: int) -> int:
        """What one sequence of `length` tokens adds, whole."""
        return length * self.token_bytes + length * length * self.pair_bytes

    def fits(self, length: int) -> bool:
        """May a sequence of `length` tokens run whole?"""
        return self.sequence_bytes(length) <= self.room_bytes

    def rows_that_fit(self, length: int) -> int:
        """Sequences of `length` tokens that may run together, at least one."""
        room = self.room_bytes // max(1, self.sequence_bytes(length))
        return max(1, min(room, TOKENS_TOGETHER // length, self.batch_size or room))

    def needed_bytes(self, held: int) -> int:
        """The least budget with room for `held` bytes of a text."""
        return self.fixed_bytes + held + (0 if self.host_bytes else min(held, self.stored_bytes))

    def too_small(self, tokens: int, length: int, held: int) -> InfeasibleError:
        """That `held` bytes for so many `tokens` of a text of `length` do not fit."""
        return InfeasibleError(
            f"needs {gib(self.needed_bytes(held))} of memory: {gib(self.layer_bytes)} for the "
            f"largest layer, {gib(self.reading_bytes)} to read it, "
            f"{gib(self.frame_bytes)} beside the layers, {gib(self.process_bytes)} of this "
            f"process, {gib(held)} for {tokens:,} tokens at once of a text of {length:,}, as much "
            f"to read ahead; the budget is {gib(self.budget_bytes)}: raise --memory or shorten the "
            "longest text"
        )


def check_disk(folder: Path, needed: int) -> None:
    """Raises InfeasibleError unless the disk that `folder` is on has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InfeasibleError(
            f"{folder}: needs {gib(needed)} of disk for hidden states and routing, {gib(free)} are "
            "free: choose another disk for the output, or fewer tokens"
        )


def gib(nbytes: int) -> str:
    """'14.5 GiB', or MiB where that says more."""
    return f"{nbytes / GIB:.1f} GiB" if nbytes >= GIB else f"{nbytes / (1 << 20):.1f} MiB"


def available_memory() -> int:
    """Bytes of memory that this machine could give us now."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def resident_bytes(field: str = "VmRSS") -> int:
    """What this process holds in memory, or with VmHWM the most it has held; 0 if not known."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def forget_peak() -> None:
    """Let the most that this process has held count from now on, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
