"""The exact LRU curve at chosen sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moeprof.cache import LruCurve, Scope
from moeprof.report.curves import cycle_slots, near_cliff, resident_share, table_slots
from moeprof.report.text.layout import bar, table, wrapped
from moeprof.report.wording import counted, percent, read_bytes

_BAR = 12


def curve_text(
    curve: LruCurve,
    expert_bytes: Mapping[str, int] | None = None,
    slots: Sequence[int] = (),
) -> str:
    """Hit ratio, misses and bytes a token at `slots`, or at sizes that show the curve.

    `expert_bytes` are the bytes of one expert by weight format, those of the curve if None. Sizes
    outside the curve are left out.
    """
    if expert_bytes is None:
        known = curve.bytes_per_expert
        expert_bytes = {} if known is None else {curve.precision: known}
    scope = "slots in every layer" if curve.scope is Scope.LAYER else "slots for all layers"
    tokens = counted(curve.tokens, "token" if curve.phase == "all" else f"{curve.phase} token")
    head = (
        f"Exact LRU, {scope}, contract {curve.contract}: {tokens}, "
        f"{curve.accesses:,} expert reads, {percent(curve.first_uses / curve.accesses)} of them "
        "first uses that no size hits."
    )
    chosen = [n for n in (slots or table_slots(curve)) if 1 <= n <= len(curve.slots)]
    columns = ["  slots", "resident", "hits", "misses/token"]
    columns += [f"{name}/token" for name in expert_bytes]
    rows = [_row(curve, n, expert_bytes) for n in chosen]
    if len(expert_bytes) < 2:  # more formats leave no room for a bar
        columns.append("hits".ljust(_BAR))
        rows = [[*row, _bar(curve, n)] for row, n in zip(rows, chosen, strict=True)]
    return "\n\n".join([wrapped(head), table(columns, rows, left=0), _footnote(curve)])


def _row(curve: LruCurve, slots: int, expert_bytes: Mapping[str, int]) -> list[str]:
    share = percent(resident_share(curve, slots))
    name = f"> {slots:,}" if slots == cycle_slots(curve) else f"{slots:,}"
    if near_cliff(curve, slots):
        return [name, share, *("cliff" for _ in range(2 + len(expert_bytes)))]
    misses = curve.misses_per_token[slots - 1]
    sizes = [read_bytes(misses * size) for size in expert_bytes.values()]
    return [name, share, percent(curve.at(slots)), f"{misses:,.3g}", *sizes]


def _bar(curve: LruCurve, slots: int) -> str:
    return "".ljust(_BAR) if near_cliff(curve, slots) else bar(curve.at(slots), _BAR)


def _footnote(curve: LruCurve) -> str:
    if curve.scope is Scope.LAYER:
        return wrapped(
            f"> token cycle: {cycle_slots(curve)} slots a layer, what one token uses at a time."
        )
    return wrapped(
        f"> token cycle: {curve.token_cycle:,} slots. Up to {curve.hitless_slots:,} slots a cache "
        "for all layers never hits; near the token cycle a slot decides, hence 'cliff' and no "
        "number."
    )
