"""Where no deployment meets the targets: which comes nearest, and by how much it misses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.projection.advice.candidate import Candidate
from moeprof.projection.advice.option import Option
from moeprof.result import Result


@dataclass(frozen=True)
class Nearest(Result):
    """With one request at a time, as fast as a deployment gets.

    `factor` is the larger of the two times over its target. Where nothing fits `option` is None
    and `short_bytes` what each GPU of `hardware` lacks at least, in `precision`.
    """

    option: Option | None
    factor: float | None
    hardware: str
    precision: str
    short_bytes: float
    misses: str


def find_nearest(candidates: Sequence[Candidate]) -> Nearest | None:
    """The candidate that misses by the least factor; where none fits that which lacks the least
    memory; None without a candidate."""
    if not candidates:
        return None
    by_miss = sorted(candidates, key=lambda each: each.miss(1))
    found = next((pair for each in by_miss if (pair := each.nearest()) is not None), None)
    if found is not None:
        factor, option = found
        misses = _misses(by_miss[0], option)
        return Nearest(option, factor, option.hardware, option.precision, 0.0, misses)
    least = min(candidates, key=lambda each: -each.ledger.free_bytes)
    short, deployment = -least.ledger.free_bytes, least.deployment
    where, precision = deployment.cluster.name, deployment.precision.name
    said = f"nothing fits: {precision} on {where} is {short / 2**30:,.1f} GiB short on each GPU"
    if deployment.cluster.host is not None:
        said += "; with experts in host memory, for one user: advise --consumer"
    return Nearest(None, None, where, precision, short, said)


def _misses(candidate: Candidate, option: Option) -> str:
    targets, said = candidate.targets, []
    for name, time, target in (
        ("TPOT", option.tpot_ms, targets.tpot_ms),
        ("TTFT", option.ttft_ms, targets.ttft_ms),
    ):
        if target is None or time is None:
            continue
        value = time.high if targets.sure and time.high is not None else time.value
        if value > target:
            end = " at the band's upper end" if targets.sure else ""
            said.append(f"{name} {value:,.3g} ms{end} of {target:,.3g} ms, {value / target:.2f} x")
    return "; ".join(said)
