"""The ranks of a deployment: which of them write, and where.

Tensor parallel ranks see the same rows, so the first writes; under sequence parallelism each sees
its own, and all write. Pipeline ranks have other layers, data parallel ranks other requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from moeprof.errors import InputError
from moeprof.trace.ranks import Rank as Place
from moeprof.trace.schema import MANIFEST, RANKS


@dataclass(frozen=True)
class Rank:
    """One worker's place. `sequence_parallel`: tensor parallel ranks route different tokens."""

    dp: int = 0
    pp: int = 0
    tp: int = 0
    dp_size: int = 1
    pp_size: int = 1
    tp_size: int = 1
    sequence_parallel: bool = False

    @property
    def place(self) -> dict[str, int]:
        """Which of them it is."""
        return {"dp": self.dp, "pp": self.pp, "tp": self.tp}

    @property
    def writes(self) -> bool:
        """Whether this rank has rows that no other writes."""
        return self.sequence_parallel or self.tp == 0

    @property
    def writers(self) -> int:
        """How many ranks of the deployment write."""
        return self.dp_size * self.pp_size * self._writing_tp

    @property
    def beside(self) -> dict[str, int]:
        """How many write beside each other, for who looks for missing ones.

        Of pipeline stages those without routers write nothing; a missing one shows by its layers.
        """
        return {"dp": self.dp_size, "tp": self._writing_tp}

    @property
    def _writing_tp(self) -> int:
        return self.tp_size if self.sequence_parallel else 1

    @property
    def name(self) -> str:
        """The folder of this rank among others."""
        return str(Place(self.dp, self.pp, self.tp))

    def path(self, output: Path) -> Path:
        """Where this rank writes: `output` itself if it is the only one."""
        return output if self.writers == 1 else output / RANKS / self.name

    def check(self, output: Path) -> None:
        """Raises InputError if what lies at `output` is of another deployment.

        What this rank itself overwrites is for the writer to judge.
        """
        if self.writers == 1:
            if (output / RANKS).exists():
                raise InputError(f"{output} holds ranks of another recording: name another output")
            return
        if (output / MANIFEST).exists():
            raise InputError(f"{output} is a recording of one rank: name another output")
        strangers = set(_names(output / RANKS)) - set(self._all_names())
        if strangers:
            raise InputError(
                f"{output} holds {min(strangers)} of another recording: name another output"
            )

    def _all_names(self) -> Iterable[str]:
        sizes = (self.dp_size, self.pp_size, self._writing_tp)
        return (str(Place(*place)) for place in product(*map(range, sizes)))


def _names(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir()) if folder.is_dir() else ()
