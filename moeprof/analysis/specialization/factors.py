"""What routing depends on beside the domain: token ids, position, phase; and how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from moeprof.analysis.specialization.confidence import ConfidenceResult, analyze_confidence
from moeprof.analysis.specialization.prefixes import SharedPrefixes, find_shared_prefixes
from moeprof.analysis.specialization.vocabulary import VocabularyResult, analyze_vocabulary
from moeprof.analysis.specialization.within import PartsEffect, analyze_phase, analyze_position
from moeprof.errors import InputError, TraceError
from moeprof.result import Result
from moeprof.trace import Trace

Prefixes = Literal["once", "all"]
T = TypeVar("T", bound=Result)


@dataclass(frozen=True)
class RoutingFactors(Result):
    """One answer each; where it is None, `missing` says why by its name."""

    vocabulary: VocabularyResult | None
    position: PartsEffect | None
    phase: PartsEffect | None
    confidence: ConfidenceResult | None
    prefixes: Prefixes  # how often tokens of a beginning that requests share were counted
    shared_prefixes: SharedPrefixes
    missing: dict[str, str]


def analyze_routing_factors(
    trace: Trace,
    *,
    prefixes: Prefixes = "once",
    shared: SharedPrefixes | None = None,
    seed: int = 0,
) -> RoutingFactors:
    """What the routing of `trace` depends on, domains aside: no labels are needed.

    `prefixes` as for `analyze_specialization`; `shared` spares finding them again. Raises
    InputError where there are no layers or tokens, TraceError on a trace of counts or a damaged
    one.
    """
    if not trace.layers or not trace.tokens:
        raise InputError(f"{trace}: holds no tokens of any MoE layer")
    shared = shared or find_shared_prefixes(trace)
    left_out = shared.repeated if prefixes == "once" and shared.repeated_tokens else None
    missing: dict[str, str] = {}

    def answer(name: str, analyze: Callable[..., T], *, there: bool = True) -> T | None:
        try:
            return analyze(trace, left_out=left_out, seed=seed)
        except TraceError as error:
            if there:
                raise
            missing[name] = str(error).removeprefix(f"{trace}: ")
        except InputError as error:
            missing[name] = str(error).removeprefix(f"{trace}: ")
        return None

    return RoutingFactors(
        vocabulary=answer("vocabulary", analyze_vocabulary, there=trace.manifest.token_ids),
        position=answer("position", analyze_position),
        phase=answer("phase", analyze_phase),
        confidence=answer("confidence", analyze_confidence),
        prefixes=prefixes,
        shared_prefixes=shared,
        missing=missing,
    )
