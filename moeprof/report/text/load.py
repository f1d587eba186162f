"""Load by layer."""

from __future__ import annotations

from moeprof.analysis import LoadResult, SamplingError
from moeprof.report.sampled import error_words
from moeprof.report.text.layout import bar, clipped, table, wrapped
from moeprof.report.wording import counted, times

_BAR = 16


def load_text(load: LoadResult, sampling: SamplingError | None = None) -> str:
    """Summary, imbalance of every layer with a bar, then phases and labels.

    `sampling` is the error of a recording whose requests were sampled.
    """
    worst = max((layer.imbalance for layer in load.per_layer), default=1.0)
    what = "experts" if load.gpus is None else f"{load.gpus} GPUs, experts in order of id"
    tokens = counted(load.tokens, "token") if load.tokens else "counts only"
    head = (
        f"Imbalance (max / mean over {what}): {times(load.mean_imbalance)} on average over "
        f"{counted(len(load.per_layer), 'layer')}, {tokens}. 1 is even."
    )
    rows = [
        [
            layer.layer,
            f"{layer.assignments:,}",
            times(layer.imbalance),
            f"{layer.balancedness:.2f}",
            f"{layer.gini:.3f}",
            f"{layer.entropy:.2f}",
            layer.unused_experts,
            bar(layer.imbalance / worst, _BAR),
        ]
        for layer in load.per_layer
    ]
    columns = [
        "layer",
        "assignments",
        "imbalance",
        "balanced",
        "gini",
        "bits",
        "unused",
        "imbalance".ljust(_BAR),
    ]
    parts = [wrapped(head), table(columns, rows, left=0)]
    if sampling:
        parts.insert(1, wrapped(f"Requests were sampled. {error_words(sampling)}"))
    groups = [("phase", load.per_phase), ("label", load.per_label)]
    for kind, values in groups:
        if values:
            lines = [[clipped(name, 40), times(value)] for name, value in values.items()]
            parts.append(table([kind, "mean imbalance"], lines))
    parts.append("balanced: mean / max. bits: entropy. unused: experts without a token.")
    return "\n\n".join(parts)
