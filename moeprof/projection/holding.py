"""The memory of a deployment under a load: its ledger, and how many sequences run at a time."""

from __future__ import annotations

from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment
from moeprof.projection.memory import MemoryLedger, project_memory


def deployment_ledger(deployment: Deployment, traffic: Traffic) -> MemoryLedger:
    """The ledger of the fullest rank with every request at its full length."""
    sequences = -(-traffic.concurrency // deployment.parallelism.dp)
    length = traffic.input_len + traffic.output_len
    return _ledger(deployment, sequences * length, sequences)


def running_limit(deployment: Deployment, traffic: Traffic) -> float | None:
    """Sequences that the memory of all groups holds at their mean length over time.

    None where not even the weights fit: then the ledger says so, and the speed is that of a card
    with more memory.
    """
    ledger = _ledger(deployment, traffic.input_len + traffic.output_len // 2, 1)
    return float(ledger.max_sequences * deployment.parallelism.dp) if ledger.max_sequences else None


def _ledger(deployment: Deployment, tokens: int, sequences: int) -> MemoryLedger:
    parallel, held = deployment.parallelism, deployment.held
    return project_memory(
        deployment.model,
        deployment.cluster,
        precision=deployment.precision,
        tp=parallel.tp,
        ep=parallel.ep,
        dp=parallel.dp,
        pp=parallel.pp,
        pad_heads=deployment.pad_heads,
        kv_dtype=deployment.kv_dtype,
        index_dtype=deployment.index_dtype,
        tokens=tokens,
        sequences=sequences,
        engine=deployment.engine,
        utilization=held.utilization,
        redundant=held.redundant,
        cache_slots=held.cache_slots,
        ram_bytes=held.ram_bytes,
        mtp=held.mtp,
        draft=held.draft,
    )
