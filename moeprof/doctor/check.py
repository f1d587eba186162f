"""One thing that was looked at, and all of them."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.result import Result


@dataclass(frozen=True)
class Check(Result):
    """`ok` is whether it is as a recording wants it; `needed` whether one fails without it."""

    name: str
    ok: bool
    detail: str
    needed: bool = False
    remedy: str = ""  # where it is not ok: what to do


@dataclass(frozen=True)
class DoctorResult(Result):
    """All checks. `failed` names those that are needed and not ok."""

    checks: list[Check]
    failed: list[str]

    @classmethod
    def of(cls, checks: list[Check]) -> DoctorResult:
        """The result of `checks`."""
        return cls(checks, [check.name for check in checks if check.needed and not check.ok])
