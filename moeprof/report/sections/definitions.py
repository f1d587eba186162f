"""How to read the page: what each word means."""

from __future__ import annotations

from moeprof.report.blocks import Section, Terms
from moeprof.report.contents import ReportContents

TERMS = (
    (
        "assignment",
        "One token sent to one expert in one layer. A token makes layers \u00d7 top-k of them.",
    ),
    (
        "imbalance",
        "Busiest over mean, max / mean: 1 is even, larger is worse. Shown for experts of a layer "
        "and for GPUs that hold them.",
    ),
    ("balancedness", "Its inverse, mean / max: 1 is even, smaller is worse."),
    (
        "step",
        "One forward pass of the engine over a batch. Prefill tokens come from prompts, decode "
        "tokens are generated one after the other.",
    ),
    (
        "slot, resident",
        "A slot holds one expert in fast memory; an expert in a slot is resident. Without a slot "
        "it is read from slower memory when it is needed: a miss.",
    ),
    (
        "hit ratio",
        "Share of expert reads that find their expert resident. It stands beside the bytes it "
        "saves, since a better ratio alone does not make an engine faster.",
    ),
    (
        "token cycle",
        "MoE layers \u00d7 top-k: the experts that one token passes through. A cache shared by "
        "all layers never hits with up to (MoE layers \u2212 1) \u00d7 top-k slots; near the token "
        "cycle a slot or two decides, and tables say \u2018cliff\u2019.",
    ),
    (
        "divergence",
        "Jensen-Shannon divergence between the labels' expert distributions in bits, mean over "
        "layers: 0 where labels use experts alike.",
    ),
    (
        "TPOT, TTFT",
        "Time per output token: from one to the next of a request, so tokens/s a user is 1 / TPOT. "
        "Time to first token: from a request's arrival to its first one.",
    ),
    (
        "TP, EP, DP",
        "Tensor parallel: GPUs that slice every layer. Expert parallel: GPUs that share experts, "
        "each whole. Data parallel: groups of GPUs that serve different requests.",
    ),
    (
        "Pareto front",
        "Deployments that no other beats in both tokens/s a user and tokens/s a GPU.",
    ),
    ("GiB, GB", "GiB = 2³⁰ bytes, for memory that is held. GB = 10⁹ bytes, for bytes that move."),
    (
        "measured, fitted, specified, assumed",
        "Where a number comes from: observed in this recording; from a law fitted to measurements; "
        "stated by a configuration, datasheet or definition; or stated by nobody for this case. A "
        "sum is as good as its weakest term.",
    ),
)


def definitions_section(contents: ReportContents) -> Section:
    """The same words on every page."""
    return Section("definitions", "How to read this", [], [Terms(TERMS)])
