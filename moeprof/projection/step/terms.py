"""The terms that the seconds of a step are the sum of, and the operations they are shown as."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Whether a term grows with the sequences that decode or with the prompt tokens beside them."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True)
class Term:
    """One summand: a constant of the law times an amount, which `Work` computes.

    An amount is in seconds at the peak of the machine's datasheet, or in milliseconds or
    microseconds a count; its constant is then how many times slower than the peak a machine runs,
    or how many of them one count takes.
    """

    name: str
    phase: Phase
    operation: str


def _terms(phase: Phase, operations: dict[str, str]) -> tuple[Term, ...]:
    return tuple(Term(name, phase, operation) for name, operation in operations.items())


TERMS: tuple[Term, ...] = (
    *_terms(
        Phase.DECODE,
        {
            "step": "host",  # ms a step
            "layer": "launches",  # us a layer
            "moe_layer": "routed experts",  # us a MoE layer: its kernels' start
            "dense": "dense weights",  # attention's projections, shared expert, dense layers
            "head": "head",
            "experts": "routed experts",
            "kv": "attention",
            "sequence": "host",  # us a sequence: sampling, scheduling
            "reduce_latency": "all-reduce",  # us a doubling of the ranks, twice a layer
            "reduce": "all-reduce",
            "dispatch_latency": "dispatch",  # us a MoE layer between data-parallel groups
            "dispatch": "dispatch",
            "expert_parallel": "dispatch",  # us a MoE layer where experts go whole to ranks
        },
    ),
    *_terms(
        Phase.PREFILL,
        {
            "prefill_experts": "prefill: routed experts",
            "prefill_read": "prefill: routed experts",  # experts that decode alone would not read
            "prefill_dense": "prefill: dense weights",
            "prefill_attention": "prefill: attention",
            "prefill_reduce": "prefill: all-reduce",
            "prefill_chunk": "prefill: host",  # ms a chunk
            "prefill_token": "prefill: host",  # us a token in 60 layers
        },
    ),
)
TERM_NAMES = tuple(term.name for term in TERMS)
OPERATIONS = tuple(dict.fromkeys(term.operation for term in TERMS))
