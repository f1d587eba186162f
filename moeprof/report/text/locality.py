"""Reuse of experts over time and over a batch."""

from __future__ import annotations

from collections.abc import Callable

from moeprof.analysis import LocalityResult
from moeprof.analysis.uncertainty import Interval
from moeprof.report.text.layout import table, wrapped
from moeprof.report.wording import command, counted, listed, percent

_STEP = 64  # tokens of the step that the answer names, where the recording allows it


def locality_text(locality: LocalityResult, trace: str = "T") -> str:
    """The answer in sentences, then tables, then what to try next on `trace`."""
    parts = [wrapped(part) for part in _answer(locality)]
    parts.append(_over_time(locality))
    parts.append(_batches(locality))
    if locality.prefill:
        parts.append(_chunks(locality))
    if locality.segments:
        parts.append(_segments(locality))
    parts.append(
        wrapped(
            "Experts of a layer, means over layers. by chance: tokens that choose one by one, each "
            "expert by its popularity. even: N(1-((N-k)/N)^B). [low, high]: 95 % over requests."
        )
    )
    slots = list(locality.segment_cache.hit_ratio) if locality.segment_cache else [locality.top_k]
    sizes = ",".join(str(size) for size in slots)
    policies = ("--policy", "lru,lfu,belady", "--scope", "layer", "--slots", sizes)
    parts.append(f"Next: {command('cache', trace, *policies)}")
    return "\n\n".join(parts)


def _answer(locality: LocalityResult) -> list[str]:
    """What the figures come to: over time, over a batch, and for a cache."""
    said = [_repeat_words(locality), _batch_words(locality)]
    cache = locality.segment_cache
    if cache:
        hits = [f"{slots} slots {percent(hit)}" for slots, hit in cache.hit_ratio.items()]
        said.append(
            f"A cache of each layer that knows the next {cache.tokens_ahead} tokens hits: "
            f"{', '.join(hits)} (SCH; {counted(cache.sequences, 'sequence')} of "
            f"{counted(cache.tokens, 'token')})."
        )
    return [*said, *_repeated_words(locality)]


def _repeated_words(locality: LocalityResult) -> list[str]:
    """What copies of shared beginnings do, where they are more than 1 %."""
    repeated, said = locality.repeated, []
    if repeated.decode:
        alone = repeated.decode.next_token_repeat
        figure = "" if alone is None else f"; without them the next token repeats {percent(alone)}"
        said.append(_copies(repeated.decode_share, "decode") + figure + ".")
    if repeated.prefill and locality.prefill:
        once, every = repeated.prefill.distinct_by_chunk, locality.prefill.distinct_by_chunk
        sizes = [size for size in every if size in once and size <= _STEP]
        figure = (
            f"; without them {counted(sizes[-1], 'consecutive token')} need {once[sizes[-1]]:.1f} "
            f"experts, with them {every[sizes[-1]]:.1f}"
            if sizes
            else ""
        )
        said.append(_copies(repeated.prefill_share, "prompt") + figure + ".")
    return said


def _copies(share: float, kind: str) -> str:
    return (
        f"{percent(share)} of {kind} tokens are copies: beginnings that requests share, counted "
        "above as often as they came"
    )


def _repeat_words(locality: LocalityResult) -> str:
    repeat = locality.next_token_repeat
    null = percent(locality.repeat_null)
    head = (
        f"The next token uses {percent(repeat)}{_within(locality.repeat_interval, percent)} of the "
        f"experts of the token before it; popularity alone gives {null}."
        if repeat is not None
        else f"No two tokens follow each other; popularity alone repeats {null} of the experts."
    )
    return (
        f"{head} {counted(locality.tokens, 'decode token')} of "
        f"{counted(locality.requests, 'request')}, top-{locality.top_k} of {locality.experts}. "
        f"{percent(locality.first_uses)} of assignments are an expert's first in its request."
    )


def _batch_words(locality: LocalityResult) -> str:
    """One batch size, by how many experts its step reads; said where requests came twice."""
    size = _STEP if _STEP in locality.distinct_by_batch else max(locality.distinct_by_batch)
    number = f"{locality.distinct_by_batch[size]:.1f}"
    said = (
        f"A step of {counted(size, 'token')}, of as many requests, needs {number}"
        f"{_within(locality.distinct_intervals.get(size), '{:.1f}'.format)} experts of a layer; an "
        f"even router would need {locality.distinct_uniform[size]:.1f}."
    )
    if locality.prefill and size in locality.prefill.distinct_by_chunk:
        chunk = locality.prefill.distinct_by_chunk[size]
        said += f" {counted(size, 'consecutive token')} of a prompt need {chunk:.1f}."
    return said


def _within(interval: Interval | None, words: Callable[[float], str]) -> str:
    """' [low, high]' or nothing."""
    if interval is None:
        return ""
    return f" [{words(interval.low)}, {words(interval.high)}]"


def _over_time(locality: LocalityResult) -> str:
    """Repeats by lag and working sets by width, then how far back the last use is."""
    sizes = sorted({*locality.repeat_by_lag, *locality.working_set})
    rows = [
        [
            f"{size:,}",
            _cell(locality.repeat_by_lag.get(size), percent),
            _cell(locality.working_set.get(size), "{:.1f}".format),
        ]
        for size in sizes
    ]
    shown = table(["tokens", "repeat so far apart", "experts of so many"], rows, left=0)
    reuse = [f"{name} {back:,}" for name, back in locality.reuse_tokens.items()]
    if reuse:
        shown += "\n" + wrapped(f"Tokens back to an expert's last use: {listed(reuse)}.")
    return shown


def _cell(value: float | None, words: Callable[[float], str]) -> str:
    return "-" if value is None else words(value)


def _batches(locality: LocalityResult) -> str:
    """Distinct experts by batch; a star where the recording has too few requests for one."""
    rows = []
    figures = {**locality.distinct_by_batch, **locality.distinct_resampled}
    for size, value in figures.items():
        star = "*" if size in locality.distinct_resampled else ""
        interval = locality.distinct_intervals.get(size)
        rows.append(
            [
                f"{size:,}{star}",
                f"{value:.1f}",
                _within(interval, "{:.1f}".format).strip(),
                f"{locality.distinct_null[size]:.1f}",
                f"{locality.distinct_uniform[size]:.1f}",
            ]
        )
    shown = table(["requests", "distinct", "[low, high]", "by chance", "even"], rows, left=0)
    if locality.distinct_resampled:
        shown += "\n" + wrapped(
            f"* more than the {counted(locality.requests, 'request')} recorded: drawn again and "
            "again, so experts that only other requests use are missing."
        )
    return shown


def _chunks(locality: LocalityResult) -> str:
    """Distinct experts of chunks of a prompt."""
    prompts = locality.prefill
    rows = (
        [
            [
                f"{size:,}",
                f"{value:.1f}",
                _within(prompts.distinct_intervals.get(size), "{:.1f}".format).strip(),
                f"{prompts.distinct_null[size]:.1f}",
                f"{locality.distinct_uniform[size]:.1f}",
            ]
            for size, value in prompts.distinct_by_chunk.items()
        ]
        if prompts
        else []
    )
    return table(["tokens of a prompt", "distinct", "[low, high]", "by chance", "even"], rows, 0)


def _segments(locality: LocalityResult) -> str:
    """Segment routing best performance by length."""
    rows = [
        [
            f"{segment.tokens:,}",
            f"{segment.srp:.3f}",
            f"{segment.srp_null:.3f}",
            f"{segment.group_experts:.1f}",
        ]
        for segment in locality.segments
    ]
    return table(["segment", "SRP", "by chance", "experts of its group"], rows, left=0)
