"""A served load: the answer in a sentence, latencies with their bands, and how full it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moeprof.projection.serving import Targets
from moeprof.projection.serving.project import Ends, ServingProjection
from moeprof.report.text.layout import table, wrapped
from moeprof.report.wording import counted, percent

_LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "end to end"}


def serving_text(served: ServingProjection) -> str:
    """All of a serving projection."""
    parts = [wrapped(_answer(served)), _latencies(served), wrapped(_goodput(served))]
    return "\n\n".join([*parts, wrapped(_fullness(served)), *map(wrapped, _notes(served))])


def _answer(served: ServingProjection) -> str:
    split = served.parallelism
    low, high = _pair(served.bands["output_tok_s"])
    return (
        f"{served.model} in {served.precision} on {served.hardware}, TP {split.tp}, EP {split.ep}, "
        f"DP {split.dp}, {served.engine.name}: {served.output_tok_s:,.0f} output tokens/s "
        f"({low:,.0f} to {high:,.0f}, {served.provenance}) and {served.total_tok_s:,.0f} with "
        f"prompts, over {counted(served.requests, 'request')} of {served.load.source}, "
        f"{_loop(served)}."
    )


def _loop(served: ServingProjection) -> str:
    load = served.load
    if load.concurrency is not None:
        return f"{load.concurrency:,} in flight at a time"
    if load.rate is not None:
        return f"arriving at {load.rate:g} a second"
    return "at the times they state"


def _latencies(served: ServingProjection) -> str:
    rows = []
    for name, title in _LATENCIES.items():
        spread: Mapping[str, float | None] = getattr(served, name)
        bands = served.bands[name]
        ends = bands["p50"] if isinstance(bands, Mapping) else None
        values = ["-" if value is None else _ms(value) for value in spread.values()]
        rows.append([title, *values, "-" if ends is None else f"{_ms(ends[0])} to {_ms(ends[1])}"])
    return table(["ms", "mean", "p50", "p90", "p99", "p50, 80 % band"], rows)


def _goodput(served: ServingProjection) -> str:
    if served.targets == Targets():
        return f"{served.goodput:.3g} requests/s; no targets were given, so all of them count."
    low, high = _pair(served.bands["goodput"])
    wanted = [
        f"{title} of {value:g} ms"
        for title, value in (("TTFT", served.targets.ttft_ms), ("TPOT", served.targets.tpot_ms))
        if value is not None
    ]
    return (
        f"Goodput {served.goodput:.3g} requests/s ({low:.3g} to {high:.3g}): "
        f"{percent(served.good_share)} of them meet a {' and a '.join(wanted)}."
    )


def _fullness(served: ServingProjection) -> str:
    words = (
        f"On average {served.running_mean:,.1f} requests run and {served.queue_mean:,.1f} wait, "
        f"{served.queue_peak:,} at most. A group has room for {served.kv_capacity_tokens:,} tokens "
        f"of KV, of which the fullest uses {percent(served.kv_share_peak or 0.0)} at most"
    )
    if served.preemptions:
        words += f"; {counted(served.preemptions, 'time')} a request lost its KV and began anew"
    return words + "."


def _notes(served: ServingProjection) -> Iterator[str]:
    policy = served.engine
    yield (
        f"TTFT contains {_ms(served.delay_ms)} ms beside the engine's steps (HTTP, tokenizer, "
        "scheduling), fitted with the law of the first token."
    )
    how = "beside decoding" if policy.mixed else "in steps of their own"
    cut = "cut into chunks" if policy.chunked else "whole"
    yield (
        f"Steps: prompts {how}, {cut}, up to {policy.max_step_tokens:,} tokens and "
        f"{policy.max_sequences:,} sequences; {policy.source}."
    )
    if served.load.workload is not None:
        parts = ("input_tokens", "cached_share", "output_tokens")
        for part in (getattr(served.load.workload, name) for name in parts):
            if not part.source.startswith("as "):
                yield f"Lengths: {part.provenance}, {part.source}."
    yield f"Bands are those of the laws: {served.source}."


def _pair(ends: Ends | Mapping[str, Ends | None]) -> Ends:
    return (0.0, 0.0) if isinstance(ends, Mapping) else ends


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
