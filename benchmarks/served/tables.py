"""Markdown tables of scores, each beside AIConfigurator's on the very same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan

from .peer import AIConfigurator
from .rows import ServedRow
from .scores import Score, grouped, score_tpot, score_ttft, worst
from .trial import Band, Forecast, Judged, Predictor, blank

HEAD = (
    "rows",
    "TPOT median",
    "mean",
    "90 % within",
    "bias",
    "Spearman",
    "in band",
    "band",
    "TTFT median",
    "in band",
)
ROW_HEAD = (
    "row",
    "deployment",
    "load",
    "TPOT ms",
    "predicted",
    "error",
    "TTFT ms",
    "predicted",
    "error",
)
PEER_HEAD = ("AIC rows", "AIC TPOT", "mean", "ours there", "AIC TTFT", "ours there")


def score_table(
    judged: Sequence[Judged],
    group_of: Callable[[Judged], str],
    first: str,
    peer: Predictor | None = None,
) -> str:
    """A line for each group and one for all: errors of TPOT and TTFT, then the peer's.

    `peer` is AIConfigurator as shipped unless given. It answers for fewer rows; "ours there" is our
    error on those alone. `first` heads the column of groups.
    """
    peer = peer or AIConfigurator()
    groups = grouped(judged, group_of)
    if len(groups) > 1:
        groups["all"] = list(judged)
    lines = [(name, *_ours(rows), *_peers(rows, peer)) for name, rows in groups.items()]
    return markdown((first, *HEAD, *PEER_HEAD), lines)


def worst_table(judged: Sequence[Judged], count: int = 10) -> str:
    """The rows whose TPOT was missed by most."""
    return row_table(worst(judged, count))


def row_table(judged: Sequence[Judged], peer: Predictor | None = None) -> str:
    """A line for each row: its deployment and load, both times measured and predicted.

    With a `peer` its TPOT stands beside; rows without a forecast have "-".
    """
    lines = [(*_deployment(each.row), *_times(each)) for each in judged]
    if peer is None:
        return markdown(ROW_HEAD, lines)
    said = peer.predict([blank(each.row) for each in judged])
    beside = [_tpot(each.row, other) for each, other in zip(judged, said, strict=True)]
    head = (*ROW_HEAD, "peer's TPOT", "error")
    return markdown(head, [one + two for one, two in zip(lines, beside, strict=True)])


def _deployment(row: ServedRow) -> tuple[str, ...]:
    parallel = f"tp{row.tp}" + f" dp{row.dp}" * (row.dp > 1) + f" ep{row.moe_ep}" * (row.moe_ep > 1)
    load = f"{row.concurrency} x {row.input_len} + {row.output_len}"
    return (row.id, f"{row.hardware}, {row.engine}, {row.precision}, {parallel}", load)


def _times(each: Judged) -> tuple[str, ...]:
    ttft, real = each.forecast.ttft_ms, each.row.ttft_ms
    tpot = (_time(each.row.tpot_ms), *_tpot(each.row, each.forecast))
    return (*tpot, _time(real), _band(ttft), _error(ttft, real))


def _tpot(row: ServedRow, said: Forecast) -> tuple[str, str]:
    return (_band(said.tpot_ms), _error(said.tpot_ms, row.tpot_ms))


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _band(band: Band | None) -> str:
    if band is None:
        return "-"
    ends = f" ({_time(band.low)} to {_time(band.high)})" if band.low and band.high else ""
    return _time(band.value) + ends


def _error(band: Band | None, real: float | None) -> str:
    return "-" if band is None or real is None else _signed(band.value / real - 1)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table with its first column to the left and all others to the right."""
    rule = ("---", *["---:"] * (len(head) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _ours(judged: Sequence[Judged]) -> tuple[str, ...]:
    tpot, ttft = score_tpot(judged), score_ttft(judged)
    return (
        str(tpot.rows),
        *map(_percent, (tpot.median, tpot.mean, tpot.p90)),
        _signed(tpot.bias),
        _number(tpot.spearman, 3),
        _percent(tpot.coverage, 0),
        _number(tpot.width, 2),
        _percent(ttft.median),
        _percent(ttft.coverage, 0),
    )


def _peers(judged: Sequence[Judged], peer: Predictor) -> tuple[str, ...]:
    said = peer.predict([blank(each.row) for each in judged])
    both = [
        (each, each._replace(forecast=answer))
        for each, answer in zip(judged, said, strict=True)
        if answer.tpot_ms
    ]
    ours, peers = ([pair[side] for pair in both] for side in (0, 1))
    tpot: Score = score_tpot(peers)
    return (
        str(tpot.rows),
        *map(_percent, (tpot.median, tpot.mean, score_tpot(ours).median)),
        *map(_percent, (score_ttft(peers).median, score_ttft(ours).median)),
    )


def _percent(value: float, digits: int = 1) -> str:
    return "-" if isnan(value) else f"{100 * value:.{digits}f} %"


def _signed(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:+.1f} %"


def _number(value: float, digits: int) -> str:
    return "-" if isnan(value) else f"{value:.{digits}f}"
