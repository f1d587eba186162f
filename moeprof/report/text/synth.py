"""A synthetic trace, and how near it is to what it should be like."""

from __future__ import annotations

from moeprof.report.text.layout import table, wrapped
from moeprof.report.wording import command, counted
from moeprof.synth import Comparison, FitJudgement, SynthResult


def synth_text(result: SynthResult) -> str:
    """What was written, the differences from the recording, and what to do next."""
    head = (
        f"{result.path}: {counted(result.tokens, 'token')} of "
        f"{counted(result.requests, 'request')} to {result.model} "
        f"({result.prefill_tokens:,} prefill, {result.decode_tokens:,} decode), "
        f"{counted(result.layers, 'layer')}, seed {result.seed}. Synthetic: not a recording."
    )
    parts = [wrapped(head), f"sha256 of its manifest: {result.sha256}"]
    if result.fit is not None:
        parts.append(judgement_text(result.fit))
    parts.append("Next:  " + command("analyze", "locality", result.path))
    return "\n\n".join(parts)


def judgement_text(fit: FitJudgement) -> str:
    """A line a figure, the place where original and synthetic differ most."""
    columns = ["figure", "at", "original", "synthetic", "difference"]
    return table(columns, [_row(comparison) for comparison in fit.comparisons])


def _row(comparison: Comparison) -> list[str]:
    at = "-" if comparison.at is None else f"{comparison.at:,}"
    values = (f"{value:.4g}" for value in (comparison.original, comparison.synthetic))
    return [comparison.metric, at, *values, f"{comparison.difference:+.1%}"]
