"""How soon experts are used again, and how many distinct ones a step of each size needs."""

from __future__ import annotations

from collections.abc import Mapping

from moeprof.analysis import LocalityResult
from moeprof.analysis.uncertainty import Interval
from moeprof.report.blocks import Block, Cell, Section, Table
from moeprof.report.charts import SHARE, Chart, Mark, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.sampled import followed_words
from moeprof.report.wording import counted, percent, read_bytes

STEP = 64  # tokens of the step that the sentence names, where there are as many requests


def locality_section(contents: ReportContents) -> Section | None:
    """Distinct experts by batch, reuse by distance, and what a cache with foresight would hit."""
    title, locality = "Locality", contents.locality
    if locality is None:
        reason = contents.missing.get("locality")
        return Section("locality", title, [f"Not shown: {reason}."], []) if reason else None
    lead = [*_repeat_words(locality), _batch_words(locality), *_cache_words(locality)]
    lead += followed_words(contents.info, contents.followed_tokens)
    blocks: list[Block] = [_by_batch(contents, locality)]
    if locality.repeat_by_lag:
        blocks.append(_by_lag(locality))
    blocks += [_working_set(locality), _segments(locality), _reuse(locality)]
    kept = [block for block in blocks if not isinstance(block, Table) or block.rows]
    return Section("locality", title, lead, kept)


def _repeat_words(locality: LocalityResult) -> list[str]:
    repeat, interval = locality.next_token_repeat, locality.repeat_interval
    if repeat is None:
        return []
    ends = (f"{100 * end:.1f} %" for end in (interval.low, interval.high)) if interval else ()
    band = f" (95 % interval {' to '.join(ends)})" if interval else ""
    return [
        f"A decode token uses {percent(repeat)} of the experts of the token before it{band}; "
        f"popularity alone would repeat {percent(locality.repeat_null)}. "
        f"{percent(locality.first_uses)} of assignments are an expert's first in its request. "
        f"Over {counted(locality.tokens, 'token')} of {counted(locality.requests, 'request')}."
    ]


def _batch_words(locality: LocalityResult) -> str:
    by_batch, size = locality.distinct_by_batch, _named_step(locality)
    return (
        f"A step of {counted(size, 'token')}, of as many requests, needs {by_batch[size]:.1f} of "
        f"the {locality.experts} experts of a layer; an even router would need "
        f"{locality.distinct_uniform[size]:.1f}."
    )


def _named_step(locality: LocalityResult) -> int:
    """Tokens of the step that is spoken of."""
    return STEP if STEP in locality.distinct_by_batch else max(locality.distinct_by_batch)


def _cache_words(locality: LocalityResult) -> list[str]:
    cache = locality.segment_cache
    if cache is None:
        return []
    hits = ", ".join(f"{percent(hit)} with {slots}" for slots, hit in cache.hit_ratio.items())
    return [f"A cache that knows the next {cache.tokens_ahead} tokens hits {hits} slots a layer."]


def _by_batch(contents: ReportContents, locality: LocalityResult) -> Chart:
    size = contents.expert_bytes.get("bf16")
    measured = _with_band(locality.distinct_by_batch, locality.distinct_intervals)
    resampled = _with_band(locality.distinct_resampled, locality.distinct_intervals)
    series = [
        Series("as recorded, with its 95 % interval", "a", measured, "line", _reads(measured, size))
    ]
    if resampled:
        name = "more tokens than requests: these are drawn again"
        series.append(Series(name, "c", resampled, "line", _reads(resampled, size)))
    null, even = locality.distinct_null, locality.distinct_uniform
    series.append(Series("by the popularity of experts alone", "b", _points(null), "dashed"))
    formula = "even router, N(1 \u2212 ((N \u2212 k)/N)^B)"
    series.append(Series(formula, "grey", _points(even), "dashed"))
    if locality.prefill:
        chunks = _points(locality.prefill.distinct_by_chunk)
        series.append(Series("consecutive tokens of one prompt", "e", chunks))
    return Chart(
        id="locality-batch",
        title="Distinct experts of a layer that a step needs, by tokens in it",
        alt="; ".join(f"{batch:.0f} tokens: {value:.1f}" for batch, value, *_ in measured),
        x=Measure("tokens in a step", scale="log2"),
        y=Measure("distinct experts of a layer", "experts", start=0, end=locality.experts),
        series=series,
        pick=_named_step(locality),
        caption="Means over layers. Decode tokens are of as many different requests. Below the "
        "even router a step reads fewer experts than theory says."
        + (" Bytes are what a layer then reads in BF16." if size else ""),
    )


def _points(values: Mapping[int, float]) -> list[tuple[float, ...]]:
    return [(at, value) for at, value in sorted(values.items())]


def _with_band(
    values: Mapping[int, float], intervals: Mapping[int, Interval]
) -> list[tuple[float, ...]]:
    points: list[tuple[float, ...]] = []
    for at, value in sorted(values.items()):
        interval = intervals.get(at)
        ends = (interval.low, interval.high) if interval else (value, value)
        points.append((at, value, *ends))
    return points


def _reads(points: list[tuple[float, ...]], expert_bytes: int | None) -> list[str]:
    if expert_bytes is None:
        return []
    return [f"{read_bytes(distinct * expert_bytes)} a layer" for _, distinct, *_ in points]


def _by_lag(locality: LocalityResult) -> Chart:
    return Chart(
        id="locality-lag",
        title="Experts that two tokens of a request share, by how far apart they are",
        alt="; ".join(
            f"{lag} apart: {percent(share)}" for lag, share in locality.repeat_by_lag.items()
        ),
        x=Measure("tokens apart", scale="log2"),
        y=Measure("share of a token's experts", SHARE, start=0),
        series=[
            Series("as recorded", "a", _points(locality.repeat_by_lag)),
            Series(
                "popularity alone",
                "grey",
                [(lag, locality.repeat_null) for lag in sorted(locality.repeat_by_lag)],
                "dashed",
            ),
        ],
    )


def _working_set(locality: LocalityResult) -> Chart:
    cycle = locality.top_k
    return Chart(
        id="locality-working-set",
        title="Distinct experts that consecutive tokens of a request use",
        alt="; ".join(f"{n} tokens: {size:.1f}" for n, size in locality.working_set.items()),
        x=Measure("consecutive tokens of a request", scale="log2"),
        y=Measure("distinct experts of a layer", "experts", start=0),
        series=[Series("working set, mean over layers", "a", _points(locality.working_set))],
        marks=[Mark(1, f"one token: {cycle}")],
    )


def _segments(locality: LocalityResult) -> Table:
    rows: list[list[Cell]] = [
        [
            each.tokens,
            f"{each.srp:.3f}",
            f"{each.srp_null:.3f}",
            f"{each.group_experts:.1f}",
            f"{each.segments:,}",
        ]
        for each in locality.segments
    ]
    return Table(
        title="Segment routing consistency",
        columns=["tokens", "SRP", "by popularity alone", "experts of the best group", "segments"],
        rows=rows,
        note="SRP: how well the best fixed group of experts covers a segment (F1, at most 1).",
    )


def _reuse(locality: LocalityResult) -> Table:
    rows: list[list[Cell]] = [[name, tokens] for name, tokens in locality.reuse_tokens.items()]
    return Table("Tokens back to an expert's last use", ["percentile", "tokens"], rows)
