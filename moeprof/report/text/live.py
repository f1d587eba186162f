"""A watched recording, on as many columns and lines as a terminal has."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.live import LayerFigures, LiveFigures
from moeprof.report.text.layout import clipped, printable, table
from moeprof.report.wording import counted, percent, read_bytes, short_count, times

_STRIP = "▁▂▃▄▅▆▇█"
_NAME = 11  # columns of what a line is about
_WIDE = 100  # columns from which on the most even layers stand beside the least


def live_text(figures: LiveFigures, width: int = 80, height: int = 24) -> str:
    """All figures; tables are as long as `height` lines allow."""
    lines = [_title(figures, width), *_about(figures, width), "", *_figures(figures, width)]
    ranks = _ranks(figures, max(2, height // 4))
    rows = height - len(lines) - len(ranks) - 3  # an empty line and two of headings
    tables = _tables(figures, width, rows) if rows > 0 else []
    shown = [*lines, *tables, *ranks][:height]
    return "\n".join(line[:width].rstrip() for line in shown)


def live_line(figures: LiveFigures) -> str:
    """The figures that matter most, in one line: for logs."""
    parts = [figures.state, f"{figures.tokens:,} tokens"]
    if figures.tokens_per_s is not None:
        parts.append(f"{_rate(figures.tokens_per_s)}/s")
    if figures.mean_imbalance is not None and figures.max_imbalance is not None:
        mean, worst = times(figures.mean_imbalance), times(figures.max_imbalance)
        parts.append(f"imbalance {mean} (worst {worst})")
    if figures.distinct_per_step is not None:
        parts.append(f"distinct {figures.distinct_per_step:.1f}")
    parts += [f"LRU {row.slots}: {percent(row.hit_ratio)}" for row in figures.lru]
    if dropped := sum(figures.dropped.values()):
        parts.append(f"dropped {dropped:,}")
    return ", ".join(parts) + (f"; {printable(figures.words)}" if figures.words else "")


def _title(figures: LiveFigures, width: int) -> str:
    state = figures.state.upper()
    source = clipped(f"moeprof live  {figures.source}", width - len(state) - 2)
    return source.ljust(width - len(state)) + state


def _about(figures: LiveFigures, width: int) -> list[str]:
    lines = []
    if figures.layers:
        name = ", ".join(filter(None, [figures.model, figures.engine])) or "a model"
        routed = f"top-{figures.top_k} of {figures.experts}"
        what = f"{counted(figures.layers, 'MoE layer')}, {routed}"
        lines.append(f"{clipped(name, width - len(what) - 2)}: {what}")
    if figures.words:
        lines.append(clipped(figures.words, width))
    return lines


def _figures(figures: LiveFigures, width: int) -> list[str]:
    """A line a figure; a dash where there is nothing to tell yet."""
    named = {
        "Recorded": _recorded(figures),
        "Now": _now(figures),
        "Window": _window(figures),
        "Dropped": _dropped(figures),
        "Imbalance": _imbalance(figures),
        "": strip(figures.per_layer, width - _NAME),
        "Distinct": _distinct(figures),
        "LRU hits": _hits(figures),
    }
    return [f"{name:<{_NAME}}{clipped(value, width - _NAME)}" for name, value in named.items()]


def _recorded(figures: LiveFigures) -> str:
    parts = [counted(figures.tokens, "token")]
    if figures.written_bytes is not None:
        parts.append(f"{read_bytes(figures.written_bytes)} written")
    if figures.pending_bytes is not None:
        parts.append(f"{read_bytes(figures.pending_bytes)} waiting to be")
    if figures.sampled_out:
        parts.append(f"{short_count(figures.sampled_out)} left out by chance")
    if figures.rotated:
        parts.append(f"{short_count(figures.rotated)} let go")
    return ", ".join(parts)


def _now(figures: LiveFigures) -> str:
    rates = (figures.tokens_per_s, figures.prefill_tokens_per_s, figures.decode_tokens_per_s)
    total, prefill, decode = ("-" if rate is None else _rate(rate) for rate in rates)
    if total == "-":
        return "-"
    return f"{total} tokens/s (prefill {prefill}, decode {decode})"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _window(figures: LiveFigures) -> str:
    text = f"last {counted(figures.window_steps, 'step')}, "
    text += counted(figures.window_tokens, "token")
    if figures.unseen_tokens:
        text += f"; {short_count(figures.unseen_tokens)} tokens came and went unseen"
    return text if figures.window_steps else "-"


def _dropped(figures: LiveFigures) -> str:
    reasons = [f"{n:,} {reason}" for reason, n in figures.dropped.items() if n]
    failed = [f"{counted(figures.errors, 'poll')} failed"] if figures.errors else []
    return "; ".join([", ".join(reasons) or "0", *failed])


def _imbalance(figures: LiveFigures) -> str:
    if figures.mean_imbalance is None:
        return "-"
    worst = max(figures.per_layer, key=lambda layer: layer.imbalance)
    best = min(figures.per_layer, key=lambda layer: layer.imbalance)
    return (
        f"{times(figures.mean_imbalance)} on average; layer {worst.layer} "
        f"{times(worst.imbalance)}, layer {best.layer} {times(best.imbalance)}"
    )


def strip(layers: Sequence[LayerFigures], width: int) -> str:
    """A character a layer, taller where it is less even; neighbours share one on few columns."""
    if not layers:
        return ""
    ends = f"  layers {layers[0].layer} to {layers[-1].layer}"
    columns = max(1, min(len(layers), width - len(ends)))
    worst = max(max(layer.imbalance for layer in layers), 1.0 + 1e-9)
    heights = []
    for column in range(columns):
        start, stop = (i * len(layers) // columns for i in (column, column + 1))
        excess = max(layer.imbalance for layer in layers[start:stop]) - 1
        heights.append(_STRIP[round(excess / (worst - 1) * (len(_STRIP) - 1))])
    return "".join(heights) + ends


def _distinct(figures: LiveFigures) -> str:
    if figures.distinct_per_step is None:
        return "-"
    text = f"{figures.distinct_per_step:.1f} of {figures.experts} experts a decode step and layer"
    if figures.distinct_null is not None:
        text += f" ({figures.distinct_null:.1f} by chance)"
    return text


def _hits(figures: LiveFigures) -> str:
    rows = [f"{row.slots} slots {percent(row.hit_ratio)}" for row in figures.lru]
    return ", ".join(rows) + " (decode, a cache a layer)" if rows else "-"


def _tables(figures: LiveFigures, width: int, rows: int) -> list[str]:
    """The least even layers, the most even where there is room, and the hottest experts."""
    if not figures.per_layer:
        return []
    uneven = sorted(figures.per_layer, key=lambda layer: -layer.imbalance)
    columns = [_layers("least even", uneven[:rows])]
    if width >= _WIDE:
        columns.append(_layers("most even", uneven[::-1][:rows]))
    hot = [
        [f"{e.layer:>7}", e.expert, percent(e.share), times(e.times_even)]
        for e in figures.hottest[:rows]
    ]
    columns.append(table(["hottest", "expert", "share", "of even"], hot, left=0))
    return ["", *side_by_side(columns)]


def _layers(name: str, layers: Sequence[LayerFigures]) -> str:
    rows = [[layer.layer, times(layer.imbalance), _or_dash(layer.distinct)] for layer in layers]
    return table([name, "imbalance", "distinct"], rows, left=0)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def side_by_side(blocks: Sequence[str]) -> list[str]:
    """Blocks of lines in columns, four spaces apart."""
    parts = [block.splitlines() for block in blocks]
    height = max(map(len, parts))
    widths = [max(map(len, part)) for part in parts]
    lines = []
    for i in range(height):
        cells = [(part[i] if i < len(part) else "") for part in parts]
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("    ".join(padded).rstrip())
    return lines


def _ranks(figures: LiveFigures, rows: int) -> list[str]:
    """A line a rank, those in trouble first."""
    if len(figures.ranks) < 2:
        return []
    order = sorted(figures.ranks, key=lambda rank: (rank.error is None, -rank.dropped))
    cells = [
        [
            clipped(rank.name, 16),
            clipped(rank.error, 30) if rank.error else "recording" if rank.recording else "off",
            f"{rank.tokens:,}" if rank.writes else "-",
            f"{rank.dropped:,}",
            "-" if rank.pending_bytes is None else read_bytes(rank.pending_bytes),
        ]
        for rank in order[:rows]
    ]
    lines = table(["rank", "state", "tokens", "dropped", "waiting"], cells, left=2).splitlines()
    more = len(order) - rows
    return ["", *lines, *([f"and {counted(more, 'rank')} more"] if more > 0 else [])]
