"""What an import answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from moeprof.result import Result


@dataclass(frozen=True)
class ImportResult(Result):
    """A trace made of foreign files. `skipped` counts what was left out, by reason."""

    path: str
    format: str
    tokens: int
    requests: int
    layers: int
    experts: int
    top_k: int
    counts_only: bool
    skipped: dict[str, int]
    notes: list[str] = field(default_factory=list)
