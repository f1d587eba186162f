"""Reading an LRU curve: what size reaches a hit ratio, and where the cliff is.

With L layers and top-k, a global cache of up to (L - 1) x k slots never hits: before an expert
comes back, at least k experts of every other layer have been used. From one slot more on it can,
and at L x k slots, the token cycle, it holds all that the last token used. Where on this jump an
engine lands is decided by a slot or two: near the token cycle the word is "cliff", and no number.
"""

from __future__ import annotations

from moeprof.cache import LruCurve, Scope

CLIFF_BAND = 0.15  # of the token cycle, to either side
HIT_TARGETS = (0.5, 0.8, 0.9)


def cycle_slots(curve: LruCurve) -> int:
    """The token cycle in the curve's own slots: per layer top-k, in all layers x top-k."""
    if curve.scope is Scope.LAYER and curve.hits_by_layer is not None:
        return curve.token_cycle // len(curve.hits_by_layer)
    return curve.token_cycle


def near_cliff(curve: LruCurve, slots: int) -> bool:
    """True where a global cache of `slots` is so near one token cycle that no number holds."""
    if curve.scope is Scope.LAYER:
        return False
    return abs(slots - curve.token_cycle) <= CLIFF_BAND * curve.token_cycle


def resident_share(curve: LruCurve, slots: int) -> float:
    """Share of all experts that `slots` hold: the unit in which both scopes compare."""
    return slots / len(curve.slots)


def slots_for(curve: LruCurve, hit_ratio: float) -> int | None:
    """The fewest slots that reach `hit_ratio`; None where first uses alone forbid it."""
    return next(
        (
            slots
            for slots, hits in zip(curve.slots, curve.hit_ratio, strict=True)
            if hits >= hit_ratio
        ),
        None,
    )


def table_slots(curve: LruCurve) -> list[int]:
    """A dozen sizes worth a row: around the token cycle, then by eighths of all experts."""
    size = len(curve.slots)
    cycle = cycle_slots(curve)
    wanted = {cycle, *(round(cycle * step) for step in (0.5, 2)), size}
    wanted |= {round(size * eighth / 8) for eighth in range(1, 8)}
    return sorted(slots for slots in wanted if 1 <= slots <= size)


def curve_points(curve: LruCurve, wanted: int) -> list[int]:
    """Indices to draw: all, or `wanted` evenly spread and the sizes around the token cycle."""
    size = len(curve.slots)
    if size <= wanted:
        return list(range(size))
    cycle = cycle_slots(curve)
    around = range(max(0, cycle - 24), min(size, cycle + 24))
    return sorted({*(round(i * (size - 1) / (wanted - 1)) for i in range(wanted)), *around})
