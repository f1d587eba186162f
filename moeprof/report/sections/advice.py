"""Which deployment to take: the cheapest that meets the targets, and the line that starts it."""

from __future__ import annotations

from moeprof.projection.advice import Advice, Option
from moeprof.projection.advice.splits import split_name
from moeprof.report.blocks import Block, Cell, Command, Section, Table
from moeprof.report.contents import ReportContents
from moeprof.report.projected_words import digits
from moeprof.report.wording import counted


def advice_section(contents: ReportContents) -> Section | None:
    """Options by cost, and the engine's command line of the first."""
    title, advice = "Advice", contents.advice
    if advice is None:
        reason = contents.missing.get("advice")
        return Section("advice", title, [f"Not shown: {reason}."], []) if reason else None
    if not advice.found:
        nearest = advice.nearest.option if advice.nearest else None
        lead = [f"{_asked(advice)} None does. Nearest: {advice.reason}."]
        return Section("advice", title, lead, [_options(advice, [nearest])] if nearest else [])
    first = advice.options[0]
    lead = [_asked(advice), f"{_answer(first)} Why: {advice.reason}."]
    blocks: list[Block] = [
        Command(f"Start the first with {first.engine}", first.command, _note(first)),
        _options(advice, advice.options),
        Table(
            title="Command lines of all",
            columns=["", "command"],
            rows=[[at, option.command] for at, option in enumerate(advice.options, start=1)],
        ),
    ]
    return Section("advice", title, lead, blocks)


def _asked(advice: Advice) -> str:
    wanted = (("TPOT", advice.targets.tpot_ms), ("TTFT", advice.targets.ttft_ms))
    within = " and ".join(f"{name} of {value:,.3g} ms" for name, value in wanted if value)
    return (
        f"Of {counted(advice.searched, 'deployment')} of {advice.model} on this hardware, which is "
        f"the cheapest for requests of {advice.input_len:,} + {advice.output_len:,} tokens within "
        f"{within or 'any time'}?"
    )


def _answer(option: Option) -> str:
    cost = option.cost_per_million_tokens
    price = f" for {digits(cost.value)} USD a million output tokens" if cost else ""
    return (
        f"{option.precision.upper()} on {option.hardware}, {split_name(option.parallelism)}, with "
        f"{counted(option.concurrency, 'request')} at a time: "
        f"{digits(option.output_tok_s.value)} output tokens/s, {digits(option.tpot_ms.value)} ms a "
        f"token{price} ({option.tpot_ms.provenance})."
    )


def _note(option: Option) -> str:
    files = "; ".join(f"it reads {name}, which moeprof advise writes out" for name in option.files)
    folder = "./NAME: no published checkpoint is known; put a folder there"
    return ". ".join(part for part in (files, folder if "./" in option.command else "") if part)


def _options(advice: Advice, options: list[Option]) -> Table:
    rows: list[list[Cell]] = [
        [
            at,
            option.precision.upper(),
            split_name(option.parallelism),
            option.concurrency,
            digits(option.tpot_ms.value),
            "-" if option.ttft_ms is None else digits(option.ttft_ms.value),
            digits(option.output_tok_s.value),
            "?" if (cost := option.cost_per_million_tokens) is None else digits(cost.value),
            "yes" if option.sure else "in the middle" if advice.found else "no",
            option.tpot_ms.provenance.value,
        ]
        for at, option in enumerate(options, start=1)
    ]
    return Table(
        title="Options, the cheapest first" if advice.found else "What comes nearest",
        columns=[
            "", "format", "split", "requests at a time", "TPOT (ms)", "TTFT (ms)",
            "output tokens/s", "USD a million output tokens", "holds over the band", "provenance",
        ],
        rows=rows,
        note="The best split of each format. Holds: whether the upper ends of the 80 % bands meet "
        "the targets too, or their middle alone.",
        open=True,
    )  # fmt: skip
