"""Slow replays written from the definitions, for tests to hold the compiled loop against."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache

Events = Sequence[Sequence[int]]  # distinct items each, in order of first use


def recency(events: Events, slots: int, *, sequential: bool, fifo: bool = False) -> list[int]:
    """Misses per event of LRU, or of FIFO."""
    held: OrderedDict[int, None] = OrderedDict()
    misses = []
    for event in events:
        before = set(held)
        missing = 0
        for item in event:
            missing += item not in (held if sequential else before)
            if item in held:
                if not fifo:
                    held.move_to_end(item)
                continue
            if len(held) == slots:
                free = [one for one in held if sequential or one not in event]
                del held[(free or list(held))[0]]
            held[item] = None
        misses.append(missing)
    return misses


def ranked(events: Events, slots: int, *, sequential: bool, in_cache: bool = False) -> list[int]:
    """Misses per event of LFU: of all uses, or of those since an item came (`in_cache`)."""
    uses: dict[int, int] = {}
    last: dict[int, int] = {}
    held: set[int] = set()
    misses, clock = [], 0
    for event in events:
        before = set(held)
        missing = 0
        for item in event:
            clock += 1
            missing += item not in (held if sequential else before)
            if item not in held:
                if len(held) == slots:
                    free = [one for one in held if sequential or one not in event] or list(held)
                    victim = min(free, key=lambda one: (uses[one], last[one]))
                    held.remove(victim)
                    if in_cache:
                        uses[victim] = 0
                held.add(item)
            uses[item] = uses.get(item, 0) + 1
            last[item] = clock
        misses.append(missing)
    return misses


def big_moe_on_edge(batches: Events, slots: int) -> list[int]:
    """Misses per batch of BigMoeOnEdge's LRU: ids may repeat, each use makes one more recent; what
    a batch used stays, however much it is, and the rest makes room when the batch is over.
    """
    held: OrderedDict[int, None] = OrderedDict()
    misses = []
    for batch in batches:
        misses.append(len(set(batch) - set(held)))
        for item in batch:
            held[item] = None
            held.move_to_end(item)
        for item in [one for one in held if one not in batch]:
            if len(held) > slots:
                del held[item]
    return misses


def following(events: Events) -> list[dict[int, int]]:
    """For each event, when each of its items is needed next; beyond the end where never."""
    seen: dict[int, int] = {}
    found = []
    for index in range(len(events) - 1, -1, -1):
        found.append({item: seen.get(item, len(events) + 1) for item in events[index]})
        seen.update(dict.fromkeys(events[index], index))
    return found[::-1]


def kept_soonest(events: Events, slots: int) -> list[int]:
    """Misses per event where, of residents and members, those needed soonest stay."""
    due: dict[int, int] = {}
    misses = []
    for event, after in zip(events, following(events), strict=True):
        misses.append(sum(item not in due for item in event))
        due.update(after)
        due = dict(sorted(due.items(), key=lambda pair: pair[1])[:slots])
    return misses


def fewest_misses(events: Events, slots: int) -> int:
    """The optimum by trying every set that may be kept after every event."""
    from itertools import combinations

    @cache
    def best(index: int, held: frozenset[int]) -> int:
        if index == len(events):
            return 0
        event = frozenset(events[index])
        there = held | event
        kept = combinations(sorted(there), min(slots, len(there)))
        return len(event - held) + min(best(index + 1, frozenset(one)) for one in kept)

    return best(0, frozenset())


ORACLES: dict[str, Callable[..., list[int]]] = {
    "lru": recency,
    "fifo": lambda events, slots, **how: recency(events, slots, fifo=True, **how),
    "lfu": lambda events, slots, **how: ranked(events, slots, in_cache=True, **how),
    "lfu-perfect": ranked,
}
