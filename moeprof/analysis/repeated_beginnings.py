"""What copies do to locality: beginnings that requests share, counted every time and once.

Under the same beginning a causal model routes the same way each time, so copies are no new
evidence. Most are tokens of prompts; where the phase was not recorded, of what counts as decode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analysis.prompt_locality import PromptLocality, analyze_runs
from moeprof.analysis.runs import find_runs
from moeprof.analysis.specialization.prefixes import find_shared_prefixes
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Phase, Trace

TOLD = 0.01  # share of a phase's tokens, above which figures are shown without copies, too


@dataclass(frozen=True)
class RepeatedBeginnings(Result):
    """Copies among the tokens, and figures without them. None: at most 1 % of the phase are."""

    decode_share: float  # of decode tokens that are copies
    prefill_share: float  # of prompt tokens
    decode: PromptLocality | None  # next-token repeat and distinct experts of consecutive tokens
    prefill: PromptLocality | None


def find_repeated(trace: Trace, *, seed: int = 0) -> RepeatedBeginnings:
    """How many tokens of `trace` are copies of a beginning of its label, and what they change.

    Raises TraceError where it is damaged.
    """
    repeated = find_shared_prefixes(trace).repeated
    found = {}
    for phase, here in (
        (Phase.DECODE, trace.phase != Phase.PREFILL),
        (Phase.PREFILL, trace.phase == Phase.PREFILL),
    ):
        share = float(repeated[here].mean()) if here.any() else 0.0
        found[phase] = share, _without(trace, phase, repeated, seed) if share > TOLD else None
    (decode_share, decode), (prefill_share, prefill) = found[Phase.DECODE], found[Phase.PREFILL]
    return RepeatedBeginnings(decode_share, prefill_share, decode, prefill)


def _without(
    trace: Trace, phase: Phase, repeated: NDArray[np.bool_], seed: int
) -> PromptLocality | None:
    try:
        runs = find_runs(trace, phase, left_out=repeated)
    except InputError:  # every token is a copy
        return None
    return analyze_runs(trace, runs, seed=seed)
