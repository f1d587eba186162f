"""Decode speed by GPU memory, where a deployment keeps experts in its host's memory."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.errors import InfeasibleError, InputError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel
from moeprof.offload import OffloadPlan, plan_offload
from moeprof.trace import Trace

SIZES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # of the card's memory
POLICIES = ("lru", "static")  # one that fetches what it misses, one that computes it in place


def plans_by_memory(
    trace: Trace,
    model: MoEModel,
    cluster: Cluster,
    *,
    precision: str,
    transfer: str | None,
    missing: dict[str, str],
) -> list[OffloadPlan]:
    """A plan for one user at each share of the card that holds what is no expert, smallest first.

    Empty where no host is named, and where it cannot be done, which `missing` then says.
    """
    if cluster.host is None:
        return []
    card = cluster.profile.memory_bytes.value
    plans = []
    try:
        for share in SIZES:
            try:
                plans.append(
                    plan_offload(
                        trace,
                        model,
                        cluster,
                        vram_bytes=share * card,
                        policy=POLICIES,
                        precision=precision,
                        transfer=transfer,
                        max_num_seqs=1,
                    )
                )
            except InfeasibleError as error:
                missing["offload"] = str(error)
    except InputError as error:
        missing["offload"] = str(error)
        return []
    return plans


def speeds_by_policy(plans: Sequence[OffloadPlan]) -> dict[str, list[float]]:
    """tokens/s of every policy, a plan each, in order of name."""
    rows = [{row.policy: row.tok_s for row in plan.rows} for plan in plans]
    return {name: [row[name] for row in rows] for name in sorted(rows[0])}
