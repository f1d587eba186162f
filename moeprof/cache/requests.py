"""What is asked of a replay, checked: policies, sizes, scope, contract, and the window judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.contracts import Contract
from moeprof.cache.policies import find_policy, load_policy
from moeprof.cache.policies.names import PolicyName
from moeprof.errors import InputError
from moeprof.trace import Trace


class Scope(StrEnum):
    """What shares the slots."""

    LAYER = "layer"  # every layer has its own, equally many
    GLOBAL = "global"  # one pool for all layers
    QUOTA = "quota"  # every layer has its own, as many as serve it best on the window before


@dataclass(frozen=True)
class Cell:
    """One replay: a policy at one size."""

    policy: str
    slots: int  # per layer; in all for scope global; on average for scope quota
    scope: Scope
    contract: Contract
    seed: int = 0
    budget_bytes: int | None = None  # in all; then capacity is counted in bytes and not in slots
    max_inserts: int | None = None  # misses of an event that come in at most, where not the rules'

    @property
    def rules(self) -> PolicyName:
        """The policy, in the engine's own version where the contract has one."""
        return find_policy(self.policy, dict(self.contract.own))

    @property
    def fitted(self) -> str:
        """What chooses the residents before the first event; "" where nothing does."""
        return self.rules.fitted

    @property
    def inserts(self) -> int:
        """Misses of an event that come in at most; 0: all."""
        return self.max_inserts or self.rules.inserts or self.contract.inserts or 0


def refuse_foreign_rules(cell: Cell, top_k: int) -> None:
    """Raise InputError where the engine of the contract has no such scope, policy or size."""
    contract = cell.contract
    if contract.scope and cell.scope != contract.scope:
        raise InputError(f"contract {contract.name} has scope {contract.scope}, not {cell.scope}")
    if contract.policies and cell.policy not in contract.policies:
        raise InputError(
            f"contract {contract.name} knows {', '.join(contract.policies)}, "
            f"not policy '{cell.policy}'"
        )
    load_policy(cell.rules)
    if contract.serving == "in_parts" and cell.slots < top_k:
        raise InputError(
            f"contract {contract.name}: a token needs {top_k} experts at a time, and {cell.slots} "
            f"slots do not hold them; give {top_k} at least"
        )
    if cell.max_inserts is not None and cell.max_inserts < 1:
        raise InputError(f"max inserts {cell.max_inserts}: 1 at least, or none for no limit")


def refuse_missing_gates(cell: Cell, trace: Trace) -> None:
    """Raise InputError where the policy reads gate weights and the recording has none."""
    if getattr(load_policy(cell.rules), "READS_GATES", False) and not trace.manifest.weights:
        raise InputError(
            f"{trace}: policy '{cell.policy}' needs the gate weights, which were not recorded; "
            "record it with --weights, or choose another policy"
        )


def parse_scope(name: Scope | str) -> Scope:
    """Raises InputError for an unknown scope."""
    try:
        return Scope(name)
    except ValueError:
        raise InputError(f"scope '{name}' is not one of {', '.join(Scope)}") from None


def slot_counts(
    trace: Trace, scope: Scope, slots: Sequence[int], fractions: Sequence[float]
) -> list[int]:
    """`slots` and what `fractions` of all experts come to. Raises InputError where none fits."""
    most = trace.experts_per_layer * (len(trace.layers) if scope is Scope.GLOBAL else 1)
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise InputError(f"fraction {fraction}: above 0 and at most 1 is needed")
    counts = [*slots, *(max(round(most * fraction), 1) for fraction in fractions)]
    if not counts:
        raise InputError("no cache size: give slots or a fraction of all experts")
    for count in counts:
        if not 1 <= count <= most:
            kind = "in all" if scope is Scope.GLOBAL else "per layer"
            raise InputError(f"slots {count}: 1 to {most} {kind} is possible for {trace}")
    return counts


def judged_from(cells: Sequence[Cell], scope: Scope, fit: float | None, steps: int) -> int:
    """The first step that is counted: what is fitted is judged on later steps than it saw.

    `fit` is the share of the steps before; None: a half where something is fitted, else none.
    """
    fitted = scope is Scope.QUOTA or any(cell.fitted.startswith("fit") for cell in cells)
    share = (0.5 if fitted else 0.0) if fit is None else fit
    if not 0 <= share < 1:
        raise InputError(f"fit {share}: a share of the steps, at least 0 and below 1, is needed")
    first = int(steps * share)
    if fitted and not first:
        raise InputError(
            f"a static list or quotas need steps to be fitted on, and {share:g} of {steps} "
            "steps is none: give a larger --fit"
        )
    return first


def known_bytes(trace: Trace, expert_bytes: Mapping[int, int] | None) -> Mapping[int, int] | None:
    """Bytes of an expert by layer index, of `expert_bytes` or else of the recording itself.

    None where neither says, or where the model's tensors are known: then a weight format does.
    """
    if expert_bytes is not None or trace.model.tensors:
        return expert_bytes
    return trace.manifest.expert_bytes or None


def expert_sizes(
    trace: Trace, precision: str | Mapping[Any, str], expert_bytes: Mapping[int, int] | None = None
) -> NDArray[np.int64] | None:
    """[layers] bytes of one expert of each layer; None where the model's tensors are not known.

    `precision` is a weight format, or one by layer index with "" for the rest; `expert_bytes`, by
    layer index, is what is known better.
    """
    expert_bytes = known_bytes(trace, expert_bytes)
    if expert_bytes is not None:
        missing = sorted({*trace.layers} - {*expert_bytes})
        if missing or min(expert_bytes.values()) < 1:
            raise InputError(f"expert bytes: above 0 for every MoE layer; missing: {missing}")
        return np.array([expert_bytes[layer] for layer in trace.layers])
    if not trace.model.tensors:
        return None
    formats: dict[Any, str] = {"": precision} if isinstance(precision, str) else dict(precision)
    unknown = sorted(set(formats) - {"", *trace.layers}, key=str)
    if unknown:
        raise InputError(f"layer {unknown[0]} of the precisions is no MoE layer of {trace}")
    if "" not in formats and set(trace.layers) - set(formats):
        raise InputError("precision: no weight format for the layers that are not named")
    size = {name: trace.model.bytes_per_expert(name) for name in set(formats.values())}
    return np.array([size[formats.get(layer, formats.get("", ""))] for layer in trace.layers])
