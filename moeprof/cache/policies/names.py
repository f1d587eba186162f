"""The policies by name, without compiling or importing any."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from moeprof.errors import InputError


class PolicyName(NamedTuple):
    """Where a policy is written, and what it is told beforehand."""

    module: str
    fitted: str = ""  # what chooses the residents before the first event, and on which window
    inserts: int = 0  # misses of an event that come in at most; 0: all


POLICIES = {
    "lru": PolicyName("lru"),
    "fifo": PolicyName("fifo"),
    "lfu": PolicyName("lfu"),
    "lfu-perfect": PolicyName("lfu_perfect"),
    "lfu-decayed": PolicyName("lfu_decayed"),
    "lfru": PolicyName("lfru"),
    "clock": PolicyName("clock"),
    "sieve": PolicyName("sieve"),
    "s3-fifo": PolicyName("s3_fifo"),
    "slru": PolicyName("slru"),
    "2q": PolicyName("two_q"),
    "arc": PolicyName("arc"),
    "w-tinylfu": PolicyName("w_tiny_lfu"),
    "layered-lru": PolicyName("layered_lru"),
    "layer-lfu": PolicyName("layer_lfu"),
    "least-stale": PolicyName("least_stale"),
    "mrs": PolicyName("mrs"),
    "activation-matrix": PolicyName("activation_matrix"),
    "r-star": PolicyName("r_star"),
    "lru-capped": PolicyName("lru", inserts=2),
    "random": PolicyName("random"),
    "static": PolicyName("static", fitted="fit"),
    "static-hindsight": PolicyName("static", fitted="judged"),
    "belady": PolicyName("belady"),
    "belady-bypass": PolicyName("belady_bypass"),
    "belady-forced": PolicyName("belady_forced"),
}
PLACEMENTS = ("uniform", "front-loading", "random")  # of KTransformers: they count no uses


def find_policy(name: str, own: dict[str, str] | None = None) -> PolicyName:
    """Policy `name`, in the version that `own` knows of. Raises InputError for an unknown one."""
    if own and name in own:
        fitted = ""
        if own[name] == "static":
            fitted = name if name in PLACEMENTS else "fit-tokens"
        return PolicyName(own[name], fitted=fitted)
    if name not in POLICIES:
        raise InputError(f"policy '{name}' is not one of {', '.join(POLICIES)}")
    return POLICIES[name]


def load_policy(policy: PolicyName | str) -> ModuleType:
    """The hooks of a policy. Raises InputError for an unknown name."""
    found = find_policy(policy) if isinstance(policy, str) else policy
    return import_module(f"moeprof.cache.policies.{found.module}")
