"""The policies by name, without compiling or importing any."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from moeprof.errors import InputError


class PolicyName(NamedTuple):
    """Where a policy is written and in what window it learns, if any, before the first event."""

    module: str
    fitted: str = ""  # "": learns nothing beforehand; "fit": on the window before; "judged"


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
    "random": PolicyName("random"),
    "static": PolicyName("static", fitted="fit"),
    "static-hindsight": PolicyName("static", fitted="judged"),
    "belady": PolicyName("belady"),
    "belady-bypass": PolicyName("belady_bypass"),
    "belady-forced": PolicyName("belady_forced"),
}


def load_policy(name: str) -> ModuleType:
    """The hooks of policy `name`. Raises InputError for an unknown one."""
    if name not in POLICIES:
        raise InputError(f"policy '{name}' is not one of {', '.join(POLICIES)}")
    return import_module(f"moeprof.cache.policies.{POLICIES[name].module}")
