"""An offload plan: the answer, the rows, where time goes, what stands where, what was assumed."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.cache import Scope
from moeprof.offload import OffloadMemory, OffloadPlan, OffloadRow
from moeprof.report.text.layout import bar, table, wrapped
from moeprof.report.wording import counted, gib, held_bytes, percent, read_bytes

_BAR = 20
_NAMES = {"gpu": "GPU", "link": "link", "cpu": "CPU", "drive": "drive", "overhead": "launches"}


def offload_text(plan: OffloadPlan) -> str:
    """The best row in a sentence, then all of them and what they rest on."""
    parts = [wrapped(_answer(plan)), _rows(plan), _time(plan), _memory(plan.memory)]
    if plan.memory.duplicate_bytes:
        copies = held_bytes(plan.memory.duplicate_bytes)
        parts.append(wrapped(f"{copies} of host memory are copies of experts that a GPU holds."))
    parts += [wrapped(_one_more(plan)), _assumed(plan), _rates(plan)]
    return "\n\n".join(parts)


def _answer(plan: OffloadPlan) -> str:
    what = "tokens" if plan.phase == "decode" else "prompt tokens"
    where = "in all" if plan.scope is Scope.GLOBAL else "a layer"
    at_a_time = "" if plan.sequences < 1.05 else f" of {plan.sequences:.3g} requests at a time"
    return (
        f"{plan.model} in {plan.precision} on {plan.hardware}: {_speed(plan.tok_s)} {what}/s"
        f"{at_a_time} ({_speed(plan.tok_s_low)} to {_speed(plan.tok_s_high)}, {plan.provenance}) "
        f"with {plan.slots:,} expert slots {where} and policy {plan.policy}; no policy exceeds "
        f"{_speed(plan.tok_s_limit)}. {_NAMES[plan.bound]} binds."
    )


def _one_more(plan: OffloadPlan) -> str:
    by_layers = [row for row in plan.rows if row.resident_layers is not None]
    words = (
        f"One GiB more on each GPU gives {plan.gib_gain_tok_s:+.2g} tokens/s as expert slots, or "
        f"holds KV of {plan.gib_kv_tokens:,} tokens."
    )
    if by_layers:
        words += f" whole-layers is llama.cpp's --n-cpu-moe {_cpu_layers(plan, by_layers[0])}."
    return words


def _cpu_layers(plan: OffloadPlan, row: OffloadRow) -> int:
    """Layers of the model, the first ones, whose experts the CPU has."""
    on_gpu = row.resident_layers or 0
    return plan.moe_layers[-on_gpu] if on_gpu else plan.moe_layers[-1] + 1


def _rows(plan: OffloadPlan) -> str:
    sizes = len({row.vram_bytes for row in plan.rows}) > 1
    moved = [name for name in ("link", "cpu", "drive") if _any_moved(plan, name)]
    columns = ["policy", *(["GiB/GPU"] if sizes else []), "slots", "hits", "tokens/s", "band"]
    columns += [f"{_NAMES[name]}/token" for name in moved] + ["bound"]
    return table(columns, [_row(row, sizes, moved) for row in plan.rows])


def _any_moved(plan: OffloadPlan, name: str) -> bool:
    return any(row.bytes_per_token[name] for row in plan.rows)


def _row(row: OffloadRow, sizes: bool, moved: list[str]) -> list[str]:
    band = f"{_speed(row.tok_s_low)} to {_speed(row.tok_s_high)}"
    size = [f"{row.vram_bytes / 2**30:.1f}"] if sizes else []
    read = [read_bytes(row.bytes_per_token[name]) for name in moved]
    slots = f"{row.slots:,}" if row.resident_layers is None else f"{row.resident_layers} layers"
    cells = [row.policy, *size, slots, percent(row.hit_ratio), _speed(row.tok_s), band]
    return [*cells, *read, _NAMES[row.bound]]


def _time(plan: OffloadPlan) -> str:
    step = plan.rows[0].step_s
    shares = ((name, share) for name, share in plan.share.items() if share)
    rows = [
        [_NAMES[name], f"{1e3 * step * share:.3g}", percent(share), bar(share, _BAR)]
        for name, share in shares
    ]
    return table([f"of {1e3 * step:.3g} ms a step", "ms", "share", ""], rows)


def _memory(memory: OffloadMemory) -> str:
    rows = []
    for name, tier in (("GPU", memory.gpu), ("host", memory.host), ("drive", memory.drive)):
        used = {key: size for key, size in tier.classes.items() if size}
        rows += [[f"{name} {key}", gib(size)] for key, size in used.items()]
        if used and tier.capacity_bytes is not None:
            rows.append([f"{name} total of {gib(tier.capacity_bytes)}", gib(tier.total_bytes)])
    return table(["memory", "GiB"], rows)


def _assumed(plan: OffloadPlan) -> str:
    tokens = counted(plan.tokens, f"{plan.phase} token")
    head = f"Over {tokens} in {plan.steps:,} steps. Assumed:"
    return "\n".join([wrapped(head), *(wrapped(line, "  ", "- ") for line in plan.assumptions)])


def _rates(plan: OffloadPlan) -> str:
    rows = [_rate(name, value) for name, value in _quantities(plan)]
    return table(["rate", "value", "low", "high", "unit", "provenance"], rows)


def _quantities(plan: OffloadPlan) -> Iterator[tuple[str, object]]:
    for name in type(plan.rates).__dataclass_fields__:
        value = getattr(plan.rates, name)
        if value is not None:
            yield name, value


def _rate(name: str, rate: object) -> list[str]:
    from moeprof.quantity import Quantity

    assert isinstance(rate, Quantity)
    ends = (rate.value, rate.low, rate.high)
    shown = ["-" if end is None else _rounded(end, rate.unit) for end in ends]
    unit = {"bytes/s": "GB/s", "s": "us", "FLOP/s": "TFLOP/s"}.get(rate.unit, rate.unit)
    return [name.removesuffix("_s"), *shown, unit, rate.provenance.value]


def _rounded(value: float, unit: str) -> str:
    scale = {"bytes/s": 1e-9, "s": 1e6, "FLOP/s": 1e-12}.get(unit, 1.0)
    return f"{value * scale:.4g}"


def _speed(tok_s: float) -> str:
    return f"{tok_s:,.3g}" if tok_s < 1000 else f"{tok_s:,.0f}"
