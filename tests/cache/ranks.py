"""Slow replays of policies that rank residents anew at every miss, from their definitions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.cache.oracles import Events

Weights = dict[tuple[int, int], float]  # (event, item) -> tokens, or gate weights of the event


@dataclass
class Ranks:
    """What a policy remembers. The lowest `rank` goes."""

    layers: int  # that share the cache; event i is of layer i % layers
    weights: Weights
    now: int = 0  # event
    clock: int = 0
    uses: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    used: dict[int, int] = field(default_factory=dict)  # clock of the last use
    event: dict[int, int] = field(default_factory=dict)  # event of the last use
    history: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # events

    def note(self, item: int, resident: bool) -> None:
        """A use."""
        self.clock += 1
        self.uses[item] += 1
        self.used[item], self.event[item] = self.clock, self.now
        self.history[item].append(self.now)

    def came(self, item: int) -> None:
        """An admission."""

    def admits(self, item: int, victim: int) -> bool:
        """Whether the newcomer is worth the victim."""
        return True

    def rank(self, item: int) -> Any:
        """What a victim is chosen by."""
        raise NotImplementedError

    def layer(self, item: int) -> int:
        """Of the item: items of a layer are named in its events alone."""
        return self.event[item] % self.layers


class Lfru(Ranks):
    def rank(self, item: int) -> Any:
        return Fraction(self.uses[item], self.now - self.event[item] + 1), item


class LayeredLru(Ranks):
    def rank(self, item: int) -> Any:
        at = self.now % self.layers
        return at <= self.layer(item) < at + 3, self.used[item]


class LayerLfu(Ranks):
    def rank(self, item: int) -> Any:
        elsewhere = self.layer(item) != self.now % self.layers
        return elsewhere, self.uses[item], self.used[item]


class LeastStale(Ranks):
    def rank(self, item: int) -> Any:
        return self.event[item] // self.layers == self.now // self.layers, self.used[item]


class RStar(Ranks):
    def score(self, item: int) -> float:
        step = self.now // self.layers
        return sum(0.5 ** ((step - i // self.layers) / 16) for i in self.history[item])

    def rank(self, item: int) -> Any:
        return round(self.score(item), 8), item

    def admits(self, item: int, victim: int) -> bool:
        return self.score(item) - self.score(victim) > 1.0 + 1e-9


class Mrs(Ranks):
    def rank(self, item: int) -> Any:
        step = self.now // self.layers
        score = sum(
            0.75 * self.weights[i, item] * 0.25 ** (step - i // self.layers)
            for i in self.history[item]
        )
        return score, item


class ActivationMatrix(Ranks):
    experts = 0  # of a layer, set by the test
    begins: frozenset[int] = frozenset()  # steps with new requests, set by the test

    def __init__(self, layers: int, weights: Weights) -> None:
        super().__init__(layers, weights)
        self.hits: dict[int, float] = {}
        self.held: set[int] = set()

    def note(self, item: int, resident: bool) -> None:
        super().note(item, resident)
        if resident:
            self.hits[item] += 1

    def came(self, item: int) -> None:
        self.hits[item] = 0.0

    def rank(self, item: int) -> Any:
        at, layer = self.now % self.layers, self.layer(item)
        depth = [1.0 if i <= at else 1 - i / self.layers for i in range(self.layers)]
        tokens = {
            one: sum(self.weights[i, one] for i in events) for one, events in self.history.items()
        }
        routed = sum(count for one, count in tokens.items() if self.layer(one) == layer)
        share = tokens.get(item, 0) / routed if routed else 1 / self.experts
        held = sum(self.hits[one] for one in self.held)
        seen = self.hits[item] / held if held else 1 / (self.layers * self.experts)
        return (
            (depth[layer] / (sum(depth) * self.experts) + 1e-6)
            * (share / self.layers + 1e-6)
            * (seen + 1e-6),
            item,
        )


RANKS: dict[str, type[Ranks]] = {
    "lfru": Lfru,
    "layered-lru": LayeredLru,
    "layer-lfu": LayerLfu,
    "least-stale": LeastStale,
    "r-star": RStar,
    "mrs": Mrs,
    "activation-matrix": ActivationMatrix,
}


def ranked_by(ranks: Ranks, events: Events, slots: int, *, sequential: bool) -> list[int]:
    """Misses per event."""
    held: set[int] = set()
    if isinstance(ranks, ActivationMatrix):
        ranks.held = held
    misses = []
    for ranks.now, event in enumerate(events):
        before, missing = set(held), 0
        step, layer = divmod(ranks.now, ranks.layers)
        if isinstance(ranks, ActivationMatrix) and layer == 0 and step in ranks.begins:
            ranks.history.clear()
        for item in event:
            missing += item not in (held if sequential else before)
            ranks.note(item, item in held)
            if item in held:
                continue
            if len(held) == slots:
                free = [one for one in held if sequential or one not in event]
                if not free and isinstance(ranks, RStar):
                    continue
                victim = min(free or held, key=ranks.rank)
                if not ranks.admits(item, victim):
                    continue
                held.remove(victim)
            held.add(item)
            ranks.came(item)
        misses.append(missing)
    return misses
