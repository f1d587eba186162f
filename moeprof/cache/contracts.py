"""What a replay assumes about the engine, by name. A result without its contract says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moeprof.errors import InputError
from moeprof.result import Result


@dataclass(frozen=True)
class Contract(Result):
    """How events are looked up, served and counted."""

    name: str
    words: str  # the rules in a sentence
    sequential: bool = False  # members are looked up and served one at a time, none is pinned
    by_last_use: bool = False  # members count as used in order of last use, not of first
    evict_after: bool = False  # all misses come in, then others make room
    larger_event: str = (
        "in order of first use; once only members are left, the policy's own victim among them goes"
    )
    scope: str = ""  # the scope that the engine has, where it has but one
    policies: tuple[str, ...] = ()  # those that it can have, where not any
    source: str = ""


ATOMIC = Contract(
    "atomic",
    "all distinct experts of a step in a layer are looked up against the state before, then all "
    "misses are served; none of them makes room for another",
)
SEQUENTIAL = Contract(
    "sequential",
    "one expert at a time is looked up and served, as general cache simulators do; for comparison "
    "with them only",
    sequential=True,
    larger_event="each in turn: what came first makes room for what comes last",
)
BIG_MOE_ON_EDGE = Contract(
    "bigmoeonedge",
    "one pool; all distinct experts of a batch are looked up and come in, in order of last use; "
    "then others go until the budget holds. A prompt is one batch a layer",
    by_last_use=True,
    evict_after=True,
    larger_event="all its members stay until the next batch makes room",
    scope="global",
    policies=("lru", "lfu-perfect", "random"),
    source="github.com/Helldez/BigMoeOnEdge: scripts/route-replay.py",
)
CONTRACTS = {contract.name: contract for contract in (ATOMIC, SEQUENTIAL, BIG_MOE_ON_EDGE)}


def find_contract(name: str | Contract) -> Contract:
    """The contract of that name. Raises InputError for an unknown one."""
    if isinstance(name, Contract):
        return name
    if name not in CONTRACTS:
        raise InputError(f"contract '{name}' is not one of {', '.join(CONTRACTS)}")
    return CONTRACTS[name]


def refuse_mixed(contracts: Iterable[str], allowed: bool) -> None:
    """Raise InputError where results of several contracts would be compared unasked."""
    names = sorted(set(contracts))
    if len(names) > 1 and not allowed:
        raise InputError(
            f"results under different contracts ({', '.join(names)}) do not compare: "
            "give one contract, or --across-contracts to see them side by side all the same"
        )
