"""Router saturation: from which checkpoint on do tokens go where the last one sends them?

Router saturation of checkpoint t is the mean over tokens of |E_i(t) and E_i(T)| / k, the share of
the experts that T, the last checkpoint, chooses for a token that t already chose (OLMoE, arXiv
2409.02060, section 5.1). Recordings of the same tokens by each checkpoint tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moeprof.analysis.comparison.compare import agree
from moeprof.analysis.comparison.results import Agreement
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class Checkpoint(Result):
    """One checkpoint beside the last."""

    name: str
    saturation: float
    agreement: Agreement


@dataclass(frozen=True)
class SaturationResult(Result):
    """Router saturation of checkpoints in order of training; the last is what they come to."""

    checkpoints: list[Checkpoint]
    last: str
    chance: float  # what checkpoints that share nothing but their loads would show, mean
    failed: list[str] = field(default_factory=list)


def router_saturation(
    traces: Sequence[Trace], *, same_tokens: bool = False, seed: int = 0
) -> SaturationResult:
    """Saturation of each of `traces` but the last, in order of training.

    Raises InputError where fewer than two are given, or where one did not record the same tokens
    as the last, which `same_tokens` overrides as in `compare_traces`.
    """
    if len(traces) < 2:
        raise InputError("router saturation needs two checkpoints at least")
    *earlier, last = traces
    checkpoints = []
    for trace in earlier:
        agreement = agree(trace, last, same_tokens=same_tokens, seed=seed)
        if agreement is None:
            raise InputError(
                f"{trace}: not known to be of the same tokens as {last}; record with token_ids, "
                "or say --same-tokens if they are"
            )
        checkpoints.append(Checkpoint(str(trace), agreement.agreement, agreement))
    chances = [checkpoint.agreement.chance["agreement"] for checkpoint in checkpoints]
    return SaturationResult(checkpoints, str(last), sum(chances) / len(chances))
