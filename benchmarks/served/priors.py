"""What is believed of the constants before a served row is seen.

Means: how far kernels stay below the peak of a datasheet, and what a launch and a step of an engine
take. Spreads of the levels were searched once over all rows of `served_points.csv`
(`benchmarks/served_priors.py`), so the errors of docs/validation/served.md know them, and not the
constants.
"""

from __future__ import annotations

from benchmarks.served.pooling import Prior
from moeprof.projection.closed_loop import FIRST_TOKEN_TERMS
from moeprof.projection.step.terms import TERM_NAMES, TERMS, Phase

SCALES = {phase.value: tuple(term.name for term in TERMS if term.phase is phase) for phase in Phase}

_MEANS = {
    "step": (1.0, 0.7),
    "layer": (15.0, 0.6),
    "moe_layer": (20.0, 0.6),
    "dense": (1.4, 0.3),
    "head": (1.3, 0.2),
    "experts": (1.4, 0.3),
    "kv": (1.2, 0.5),
    "sequence": (8.0, 0.8),
    "reduce_latency": (1.2, 0.6),
    "reduce": (1.2, 0.5),
    "dispatch_latency": (40.0, 0.7),
    "dispatch": (1.5, 0.5),
    "expert_parallel": (3.0, 0.7),
    "prefill_experts": (3.0, 0.5),
    "prefill_read": (1.3, 0.3),
    "prefill_dense": (1.8, 0.4),
    "prefill_attention": (2.5, 0.5),
    "prefill_reduce": (1.2, 0.4),
    "prefill_chunk": (2.0, 0.7),
    "prefill_token": (2.0, 0.7),
}
assert tuple(_MEANS) == TERM_NAMES

STEP = Prior(
    means=_MEANS,
    scales=SCALES,
    levels={
        "generation": {
            "decode": 0.34,
            "prefill": 0.17,
            "layer": 0.12,
            "experts": 0.058,
            "reduce_latency": 0.1,
        },
        "gpu": {"decode": 0.044, "prefill": 0.12},
        "engine": {
            "decode": 0.036,
            "prefill": 0.42,
            "step": 0.17,
            "layer": 0.8,
            "sequence": 0.62,
            "experts": 0.2,
            "dense": 0.17,
            "reduce_latency": 0.12,
        },
        "format": {"decode": 0.02, "prefill": 0.2, "dense": 0.19, "experts": 0.091, "kv": 0.16},
        "attention": {"layer": 0.37, "kv": 0.27, "prefill_attention": 0.22},
        "stack": {"decode": 0.16, "prefill": 0.46, "layer": 0.09, "experts": 0.44, "dense": 0.18},
        "model": {
            "decode": 0.23,
            "prefill": 0.14,
            "layer": 0.52,
            "moe_layer": 0.39,
            "kv": 0.21,
            "prefill_experts": 0.41,
        },
        "served": {"decode": 0.095, "prefill": 0.17, "layer": 0.033, "experts": 0.12},
        "release": {"decode": 0.28, "prefill": 0.34},
    },
    noise=0.058,
    bend=0.3,
)

_FIRST_TOKEN_MEANS = {
    "overhead": (25.0, 0.7),  # ms
    "prefill": (1.2, 0.4),
    "step": (1.0, 0.4),
    "first_wave": (1.0, 0.4),
    "bunched": (0.3, 0.7),
    "admission": (0.7, 0.4),
}
assert tuple(_FIRST_TOKEN_MEANS) == FIRST_TOKEN_TERMS

FIRST_TOKEN = Prior(
    means=_FIRST_TOKEN_MEANS,
    scales={"all": FIRST_TOKEN_TERMS},
    levels={
        "engine": {"all": 0.2, "overhead": 0.5, "first_wave": 0.3, "bunched": 0.3},
        "gpu": {"all": 0.1},
        "stack": {"all": 0.1},
        "model": {"all": 0.15, "overhead": 0.2},
        "served": {"all": 0.15},
        "release": {"all": 0.3, "overhead": 0.3, "first_wave": 0.3},
    },
    noise=0.2,
    bend=0.7,
)
