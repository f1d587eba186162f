"""Which deployment to take: options by cost, the reason, and what to type."""

from __future__ import annotations

from moeprof.projection import FAMILIARITIES
from moeprof.projection.advice import Advice, LatencyTargets, Option
from moeprof.projection.advice.levers import LeverRow
from moeprof.projection.advice.splits import split_name
from moeprof.projection.advice.tornado import TornadoBar
from moeprof.quantity import Quantity
from moeprof.report.text.layout import bar, clipped, printable, table, wrapped
from moeprof.report.wording import counted

_LEVERS = ("precision", "ranks", "placement")
_SETTINGS = 4  # of a lever, beside the one that is
_LACKS = "does not fit"
_BAR = 8
_HARDWARE = 22  # characters


def advice_text(advice: Advice, top: int = 5) -> str:
    """The question, `top` options, the reason for the first, and their command lines."""
    parts = [wrapped(_question(advice))]
    if not advice.found:
        return "\n\n".join([*parts, wrapped(_none(advice)), *_nearest(advice)])
    shown = advice.options[:top]
    parts += [options_table(shown, advice.targets)]
    parts += [wrapped(f"First: {advice.reason}."), wrapped(_notes(advice))]
    parts += [commands_text(shown), levers_text(advice.levers), tornado_text(advice.tornado)]
    return "\n\n".join(parts)


def options_table(options: list[Option], targets: LatencyTargets) -> str:
    """One line an option, and whether it meets the targets."""
    rows = [
        [
            clipped(f"{number} {option.hardware}", _HARDWARE),
            option.precision,
            split_name(option.parallelism),
            option.concurrency,
            _digits(option.tpot_ms),
            "-" if option.ttft_ms is None else _digits(option.ttft_ms),
            f"{option.output_tok_s.value:,.0f}",
            _money(option.cost_per_million_tokens),
            _holds(option, targets),
        ]
        for number, option in enumerate(options, start=1)
    ]
    heads = ["", "format", "split", "reqs", "TPOT ms", "TTFT ms", "tok/s", "USD/M", "holds"]
    return table(heads, rows, left=3)


def commands_text(options: list[Option]) -> str:
    """The command line of each option, unwrapped so that it can be copied, and its files."""
    lines = []
    for number, option in enumerate(options, start=1):
        lines.append(f"{number}  {printable(option.command)}")
        for name, text in option.files.items():
            lines += [f"   {name}:", *(f"     {line}" for line in text.splitlines())]
    if any("./" in option.command for option in options):
        lines.append("   ./NAME: no published checkpoint is known; put a folder there")
    return "\n".join(lines)


def levers_text(levers: list[LeverRow]) -> str:
    """What each lever does to the first option, the other two held."""
    shown = [row for lever in _LEVERS for row in _widest(levers, lever)]
    rows = [
        [
            row.lever,
            row.setting,
            "-" if row.tpot_ms is None else _digits(row.tpot_ms),
            "-" if row.output_tok_s is None else f"{row.output_tok_s.value:,.0f}",
            "-" if row.change is None else f"{row.change:+.0%}",
            "-" if row.imbalance is None else f"{row.imbalance:.2f}",
            _LACKS if not row.fits else "",
        ]
        for row in shown
    ]
    heads = ["lever", "setting", "TPOT ms", "tok/s", "change", "busiest", ""]
    said = [row.note for row in shown if row.tpot_ms is None]
    parts = ["Levers of the first, the others held:", table(heads, rows, left=2)]
    return "\n\n".join([*parts, *(wrapped(f"Placement: {note}.") for note in said)])


def tornado_text(bars: list[TornadoBar]) -> str:
    """What the first option's figures hang on, the most first."""
    rows = [
        [
            each.factor,
            f"{each.low_setting} to {each.high_setting}",
            f"{each.tpot_ms[0]:.3g} to {each.tpot_ms[1]:.3g}",
            f"{each.output_tok_s[0]:,.0f} to {each.output_tok_s[1]:,.0f}",
            bar(each.swing / max(other.swing for other in bars), _BAR),
        ]
        for each in bars
    ]
    heads = ["what it hangs on", "from to", "TPOT ms", "tok/s", ""]
    return table(heads, rows, left=2)


def _widest(levers: list[LeverRow], lever: str) -> list[LeverRow]:
    """The setting that is, and the best of the others."""
    first, *others = [row for row in levers if row.lever == lever]
    others.sort(key=lambda row: (not row.fits, -(row.change or 0)))
    return [first, *others[:_SETTINGS]]


def _question(advice: Advice) -> str:
    targets = advice.targets
    asked = {"TPOT": targets.tpot_ms, "TTFT": targets.ttft_ms}
    within = [f"{name} of {value:,g} ms" for name, value in asked.items() if value is not None]
    cached = f", {advice.cached_len:,} of them cached" if advice.cached_len else ""
    end = " at the upper end of the band" if targets.sure else ""
    return (
        f"{advice.model} by {advice.engine}, {advice.input_len:,} tokens in{cached} and "
        f"{advice.output_len:,} out, within {' and '.join(within) or 'any time'}{end}: "
        f"{counted(advice.searched, 'deployment')} searched"
    )


def _none(advice: Advice) -> str:
    return f"None meets the targets. Nearest: {advice.reason}."


def _nearest(advice: Advice) -> list[str]:
    option = advice.nearest.option if advice.nearest else None
    if option is None:
        return []
    return [options_table([option], advice.targets), commands_text([option])]


def _notes(advice: Advice) -> str:
    first = advice.options[0]
    return (
        f"Times and rates are {first.tpot_ms.provenance} ({FAMILIARITIES[first.familiarity]}), "
        "with 80 % bands in the JSON; holds says whether their upper ends meet the targets too. "
        "USD/M is of a million output tokens at full load, hosts and network not counted."
    )


def _holds(option: Option, targets: LatencyTargets) -> str:
    """At the upper ends of the bands, in the middle alone, or not even there: the nearest."""
    if option.sure:
        return "yes"
    ttft_ms = option.ttft_ms.value if option.ttft_ms else float("inf")
    return "middle" if targets.miss(option.tpot_ms.value, ttft_ms) <= 1 else "no"


def _digits(time: Quantity) -> str:
    return f"{time.value:,.0f}" if time.value >= 100 else f"{time.value:.3g}"


def _money(cost: Quantity | None) -> str:
    return "?" if cost is None else f"{cost.value:.2f}"
