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
    fitting = [found for found in (each.nearest() for each in candidates) if found is not None]
    if fitting:
        factor, option = min(fitting, key=lambda found: (found[0], found[1].rank))
        return Nearest(
            option, factor, option.hardware, option.precision, 0.0, _misses(candidates[0], option)
        )
    if not candidates:
        return None
    least = min(candidates, key=lambda each: -each.ledger.free_bytes)
    short = -least.ledger.free_bytes
    deployment = least.deployment
    return Nearest(
        None,
        None,
        deployment.cluster.name,
        deployment.precision.name,
        short,
        f"nothing fits: {deployment.precision.name} on {deployment.cluster.name} is "
        f"{short / 2**30:,.1f} GiB short on each GPU",
    )


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
