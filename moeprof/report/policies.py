"""Cache policies side by side: what the report replays of a recording, and at which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.cache import CacheReplay, CacheReplays, Scope, replay_cache
from moeprof.errors import InputError
from moeprof.report.excerpts import middle_steps
from moeprof.trace import Phase, Trace

# Recency, a list fitted on the first half, and the optimum: what reports argue about. Each policy
# more takes a first run some seconds to compile.
SHOWN = ("lru", "static", "belady-bypass")
EIGHTHS = (1, 2, 3, 4, 5, 6, 7)  # of all experts resident
REPLAYED = 1_140_000  # tokens x layers at most: of a million x 57 all would take minutes


@dataclass(frozen=True)
class PolicyCurve:
    """Rows of one policy in one scope, the smallest size first."""

    policy: str
    scope: Scope
    rows: Sequence[CacheReplay]

    def points(self, experts: int) -> list[tuple[float, float]]:
        """(share of all experts resident, hit ratio); `experts` share the slots of a row."""
        return [(row.slots / experts, row.hit_ratio) for row in self.rows]


def replay_policies(trace: Trace, phase: Phase | None) -> dict[Scope, CacheReplays]:
    """The policies shown, per layer and in one pool, over the later half of `trace`, or of the
    steps in its middle that hold `most_tokens`.

    Raises InputError where the recording cannot be replayed or is too short to fit a list on.
    """
    trace = middle_steps(trace, phase, most_tokens(len(trace.layers)))
    layers, experts = len(trace.layers), trace.experts_per_layer
    cycle = trace.top_k
    return {
        scope: replay_cache(
            trace,
            policy=SHOWN,
            slots=_sizes(experts * (layers if scope is Scope.GLOBAL else 1), cycle * many),
            scope=scope,
            phase=phase,
        )
        for scope, many in ((Scope.LAYER, 1), (Scope.GLOBAL, layers))
    }


def most_tokens(layers: int) -> int:
    """About how many tokens of a long recording are replayed: 20,000 at 57 layers."""
    return REPLAYED // layers


def _sizes(most: int, cycle: int) -> list[int]:
    """One token cycle, twice that, and the eighths."""
    wanted = {cycle, 2 * cycle, *(round(most * part / 8) for part in EIGHTHS)}
    return sorted(size for size in wanted if 1 <= size <= most)


def curves_of(replays: CacheReplays) -> list[PolicyCurve]:
    """`replays` by policy."""
    scope = replays.rows[0].scope
    return [
        PolicyCurve(name, scope, [row for row in replays.rows if row.policy == name])
        for name in dict.fromkeys(row.policy for row in replays.rows)
    ]


def replayed_policies(
    trace: Trace, phase: Phase | None, missing: dict[str, str]
) -> dict[Scope, CacheReplays]:
    """`replay_policies`; empty where it cannot be done, which `missing` then says."""
    try:
        return replay_policies(trace, phase)
    except InputError as error:
        missing["policies"] = str(error)
        return {}
