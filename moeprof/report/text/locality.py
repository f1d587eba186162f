"""Reuse of experts over time and over a batch."""

from __future__ import annotations

from moeprof.analysis import LocalityResult
from moeprof.report.text.layout import table, wrapped
from moeprof.report.wording import counted, percent


def locality_text(locality: LocalityResult) -> str:
    """Next-token repeat, then repeats by lag, working sets, and distinct experts by batch."""
    repeat = locality.next_token_repeat
    head = (
        f"Next-token repeat: {'-' if repeat is None else percent(repeat)} of a token's experts "
        f"were the token's before it, {percent(locality.repeat_null)} by popularity alone. "
        f"{counted(locality.tokens, 'decode token')} of {counted(locality.requests, 'request')}; "
        f"top-{locality.top_k} of {locality.experts}. "
        f"{percent(locality.first_uses)} of assignments are an expert's first in its request."
    )
    reuse = ", ".join(f"{name} {back:,}" for name, back in locality.reuse_tokens.items())
    lags = [[f"{lag:,}", percent(share)] for lag, share in locality.repeat_by_lag.items()]
    spans = [[f"{span:,}", f"{mean:.1f}"] for span, mean in locality.working_set.items()]
    parts = [wrapped(head)]
    if reuse:
        parts.append(wrapped(f"Tokens back to an expert's last use in its request: {reuse}."))
    if lags:
        parts.append(table(["tokens apart", "repeat"], lags, left=0))
    parts.append(table(["consecutive tokens", "working set"], spans, left=0))
    parts.append(_batches(locality))
    parts.append("working set, distinct: experts of a layer. by chance: tokens independent.")
    return "\n\n".join(parts)


def _batches(locality: LocalityResult) -> str:
    """Distinct experts by batch; '-' where the recording has too few requests for one."""
    rows = []
    for size, null in locality.distinct_null.items():
        measured = locality.distinct_by_batch.get(size)
        rows.append([size, "-" if measured is None else f"{measured:.1f}", f"{null:.1f}"])
    return table(["batch", "distinct", "by chance"], rows, left=0)
