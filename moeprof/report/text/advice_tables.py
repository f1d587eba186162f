"""Tables beside an advice: machines that one buys, and models side by side."""

from __future__ import annotations

from moeprof.projection.advice import Comparison, MachineTable, ModelCost, Option
from moeprof.projection.advice.ownership import ASSUMPTION
from moeprof.projection.advice.reason import describe
from moeprof.quantity import Quantity
from moeprof.report.text.layout import printable, table, wrapped


def machines_text(found: MachineTable) -> str:
    """What each machine runs, how fast for one user, and the command lines."""
    rows, commands = [], []
    for row in found.rows:
        if not row.options:
            rows.append([f"-  {row.machine.title}", "does not fit", "", "", "", "", ""])
        for option in row.options:
            commands.append(printable(option.command))
            rows.append([f"{len(commands):<2} {row.machine.title}", *_machine_cells(option)])
    heads = ["machine", "format", "host", "tok/s", "80 % band", "TTFT", "from"]
    title = (
        f"{found.model} for one user, {found.input_len:,} tokens in and {found.output_len:,} out:"
        " the most bits that fit and the fastest, by each engine"
    )
    host = (
        "Host: experts that stay in host memory, computed by the CPU: those of so many layers "
        "(llama.cpp), or so many of each layer (KTransformers, routing taken as even). Prompts are "
        "not projected then. `moeprof offload` says what a recording makes of it. TTFT in seconds."
    )
    problems = [wrapped(f"{r.machine.title}: {r.problem}.") for r in found.rows if r.problem]
    listed = "\n".join(f"{n:<2} {command}" for n, command in enumerate(commands, start=1))
    return "\n\n".join(
        [wrapped(title), table(heads, rows, left=2), wrapped(host), *problems, listed]
    )


def comparison_text(found: Comparison) -> str:
    """Models side by side, each in its cheapest deployment that meets the targets."""
    costs = found.costs
    rows = [_cost_cells(cost) for cost in costs]
    heads = ["", "reqs", "weights GB", "KV KB/tok", "tok/s/GPU", "tok/s/user", "USD/M", "Wh/M"]
    problems = [wrapped(f"{cost.model}: {cost.problem}.") for cost in costs if cost.problem]
    note = (
        "Of a million output tokens; KV with copies on all ranks of a group; energy with all GPUs "
        f"at full power. A machine without a price by the hour is {ASSUMPTION}."
    )
    runs = [
        f"{cost.model}: {describe(cost.option)}\n  {printable(cost.option.command)}"
        for cost in costs
        if cost.option is not None
    ]
    return "\n\n".join([table(heads, rows), *problems, wrapped(note), "\n".join(runs)])


def _machine_cells(option: Option) -> list[str]:
    rate = option.output_tok_s
    low, high = rate.low or rate.value, rate.high or rate.value
    ttft = "-" if option.ttft_ms is None else f"{option.ttft_ms.value / 1e3:.2g}"
    model, hosted = option.deployment.model, "-"
    if option.host_layers:
        hosted = f"{option.host_layers}/{len(model.moe_layers)}"
    if option.gpu_experts is not None:
        hosted = f"{model.experts - option.gpu_experts}/{model.experts}"
    band = " to ".join(f"{end:,.0f}" if end >= 10 else f"{end:.2g}" for end in (low, high))
    return [option.precision, hosted, f"{rate.value:.3g}", band, ttft, rate.provenance.value]


def _cost_cells(cost: ModelCost) -> list[str]:
    option = cost.option
    if option is None or cost.weights_bytes is None or cost.kv_bytes_per_token is None:
        return [cost.model, *["-"] * 7]
    return [
        cost.model,
        f"{option.concurrency}",
        f"{cost.weights_bytes / 1e9:,.0f}",
        f"{cost.kv_bytes_per_token / 1e3:,.0f}",
        f"{option.output_tok_s_per_gpu:,.0f}",
        f"{option.output_tok_s_per_user:.3g}",
        _value(option.cost_per_million_tokens, ".2f"),
        _value(option.energy_wh_per_million_tokens, ",.0f"),
    ]


def _value(quantity: Quantity | None, form: str) -> str:
    return "?" if quantity is None else format(quantity.value, form)
