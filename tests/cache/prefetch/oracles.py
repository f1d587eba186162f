"""Slow predictors and a slow replay with prefetch, written from docs/prefetch.md."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

Names = list[list[int]]  # for every event, the experts named for a later one


Key = tuple[int, int]  # layer and expert


class LruCache:
    """An LRU cache of (layer, expert)."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: OrderedDict[Key, None] = OrderedDict()

    def admit(self, key: Key, spared: set[Key]) -> Key | None:
        """Bring in `key`, and return who had to go: the oldest that is not spared, if any is."""
        victim = None
        if len(self.held) == self.slots:
            free = [one for one in self.held if one not in spared] or list(self.held)
            victim = free[0]
            del self.held[victim]
        self.held[key] = None
        return victim


@dataclass
class Replayed:
    """One replay: what is where, and what became of every fetch."""

    events: Sequence[Sequence[int]]
    named: Names
    layers: int
    lookahead: int
    slots: int
    scope: str
    transfer: float  # what one expert takes, in times that a layer computes for
    first: int  # judged event
    misses: list[int] = field(default_factory=list)  # of every event
    stalls: list[float] = field(default_factory=list)
    total: Counter[str] = field(default_factory=Counter)  # of the judged events
    queue: list[tuple[int, Key]] = field(default_factory=list)
    arrival: dict[Key, float] = field(default_factory=dict)
    fresh: dict[Key, int] = field(default_factory=dict)  # not used yet, and by which fetch here
    pushed: dict[Key, int] = field(default_factory=dict)  # out, and by which fetch
    fetches: int = 0
    now: float = 0.0
    link: float = 0.0  # when it is free

    def run(self) -> Replayed:
        """All events."""
        self.caches = [
            LruCache(self.slots) for _ in range(self.layers if self.scope == "layer" else 1)
        ]
        for event, members in enumerate(self.events):
            keys = [(event % self.layers, expert) for expert in members]
            absent, late = self.look_up(keys, judged=event >= self.first)
            self.serve(keys, judged=event >= self.first)
            if event < self.first:
                self.stalls.append(0.0)
                continue
            ready = max([self.now, *(self.arrival[key] for key in late)])
            if absent:
                ready = self.link = max(self.now, self.link) + len(absent) * self.transfer
            self.stalls.append(ready - self.now)
            self.ask(event, keys)
            self.start(event, keys, ready)
            self.now = ready + 1.0
        self.total["unused"] = len(self.fresh)
        return self

    def home(self, key: Key) -> LruCache:
        """The cache of `key`."""
        return self.caches[key[0] % len(self.caches)]

    def look_up(self, keys: list[Key], judged: bool) -> tuple[list[Key], list[Key]]:
        """Who is not there, and who is still on the way."""
        waiting = {key for _, key in self.queue}
        absent = [key for key in keys if key not in self.home(key).held]
        late = [key for key in set(keys) - set(absent) if self.arrival.get(key, 0.0) > self.now]
        self.misses.append(len(absent) + len(late))
        used = {key: self.fresh.pop(key) for key in keys if key in self.fresh}
        self.pushed = {key: by for key, by in self.pushed.items() if by not in used.values()}
        if judged:
            self.total["accesses"] += len(keys)
            self.total["misses"] += len(absent) + len(late)
            self.total["late"] += len(late) + len(waiting & set(absent))
            self.total["useful"] += len(used.keys() - set(late))
            self.total["polluting"] += len(self.pushed.keys() & set(absent))
        self.pushed = {key: by for key, by in self.pushed.items() if key not in keys}
        return absent, late

    def serve(self, keys: list[Key], judged: bool) -> None:
        """Touch or bring in."""
        for key in keys:
            held = self.home(key).held
            if key in held:
                held.move_to_end(key)
                continue
            gone = self.home(key).admit(key, set(keys))
            self.total["wasted"] += judged and gone in self.fresh
            self.fresh.pop(gone, None)

    def ask(self, event: int, keys: list[Key]) -> None:
        """Forget what is too late, and queue what is named and not there."""
        self.total["dropped"] += sum(t == event and key not in keys for t, key in self.queue)
        self.queue = [pair for pair in self.queue if pair[0] > event]
        target = event + self.lookahead
        for expert in self.named[event] if target < len(self.events) else ():
            key = (target % self.layers, expert)
            if key not in self.home(key).held and key not in {one for _, one in self.queue}:
                self.queue.append((target, key))
                self.total["prefetched"] += 1

    def start(self, event: int, keys: list[Key], ready: float) -> None:
        """Begin fetches until the next event, none at the cost of what runs or is named ahead."""
        spared = set(keys)
        begin = max(event + 1, self.first + self.lookahead)
        for ahead in range(begin, min(event + self.lookahead + 1, len(self.events))):
            spared |= {(ahead % self.layers, e) for e in self.named[ahead - self.lookahead]}
        while self.queue and self.link < ready + 1.0:
            _, key = self.queue.pop(0)
            home = self.home(key)
            if len(home.held) == self.slots and set(home.held) <= spared:
                self.total["dropped"] += 1
                continue
            gone = home.admit(key, spared)
            self.arrival[key] = self.link = max(self.link, ready) + self.transfer
            self.fetches += 1
            self.fresh[key] = self.fetches
            self.pushed.pop(key, None)
            if gone is not None:
                self.total["wasted"] += gone in self.fresh
                self.fresh.pop(gone, None)
                self.pushed[gone] = self.fetches


def ranked(score: dict[int, float], width: int) -> list[int]:
    """The highest scores above 0; of equals, the first in `score`."""
    order = sorted(score, key=lambda expert: -score[expert])
    return [expert for expert in order[:width] if score[expert] > 0]


def previous_token(steps: list[list[list[list[int]]]], lookahead: int, width: int) -> Names:
    """steps[step][layer] is a list of the tokens' experts."""
    layers, flat = len(steps[0]), [event for step in steps for event in step]
    named = []
    for event in range(len(flat)):
        source = event + lookahead - layers
        counts = Counter(e for token in flat[source] for e in token) if source >= 0 else Counter()
        named.append(ranked(dict(counts), width))
    return named


def static(
    steps: list[list[list[list[int]]]], lookahead: int, width: int, fit: int, size: int
) -> Names:
    """The experts that most events of the first `fit` steps named."""
    layers = len(steps[0])
    best = []
    for layer in range(layers):
        uses = dict.fromkeys(range(size), 0)
        for step in steps[:fit]:
            for expert in {e for token in step[layer] for e in token}:
                uses[expert] += 1
        best.append(ranked(dict(uses), width))
    return [best[(layer + lookahead) % layers] for _ in steps for layer in range(layers)]


def markov(
    steps: list[list[list[list[int]]]],
    requests: list[list[int]],
    lookahead: int,
    width: int,
    fit: int,
    size: int,
) -> Names:
    """Shares of what followed each expert of a token; requests[step]: each token's request."""
    layers = len(steps[0])
    came: Counter[tuple[int, int, int]] = Counter()
    uses: Counter[tuple[int, int]] = Counter()
    for layer, before, after in followed(steps[:fit], requests, lookahead):
        uses.update((layer, expert) for expert in before)
        came.update((layer, expert, other) for expert in before for other in after)
    named = []
    for step in steps:
        for layer in range(layers):
            score = dict.fromkeys(range(size), 0.0)
            for expert, tokens in Counter(e for token in step[layer] for e in token).items():
                for other in range(size):
                    score[other] += tokens * (
                        came[layer, expert, other] / max(uses[layer, expert], 1)
                    )
            named.append(ranked(score, width))
    return named


def followed(
    steps: list[list[list[list[int]]]], requests: list[list[int]], lookahead: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """(layer, a token's experts there, those that followed them) of every token."""
    layers = len(steps[0])
    latest: dict[int, tuple[int, list[list[int]]]] = {}
    for number, (step, who) in enumerate(zip(steps, requests, strict=False)):
        for place, request in enumerate(who):
            token = [step[layer][place] for layer in range(layers)]
            for layer in range(layers - lookahead):
                yield layer, token[layer], token[layer + lookahead]
            seen = latest.get(request)
            latest[request] = (number, token)
            if seen is not None and seen[0] < number:
                for layer in range(lookahead):
                    source = layers - lookahead + layer
                    yield source, seen[1][source], token[layer]


def activation_matrix(
    steps: list[list[list[list[int]]]],
    requests: list[list[int]],
    lookahead: int,
    width: int,
    fit: int,
    size: int,
) -> list[list[list[int]]]:
    """For every event, all that may be named: learned matrices may be equally alike."""
    layers = len(steps[0])
    until = {who: number for number, step in enumerate(requests) for who in step}
    matrices: dict[int, list[list[int]]] = {}
    learned: dict[int, list[list[int]]] = {}
    allowed = []
    for step, present in zip(steps, requests, strict=True):
        for layer in range(layers):
            for who, token in zip(present, step[layer], strict=True):
                matrix = matrices.setdefault(who, [[0] * size for _ in range(layers)])
                for expert in token:
                    matrix[layer][expert] += 1
        learned |= {who: matrices[who] for who in present if until[who] < fit}
    matrices = {}
    for step, present in zip(steps, requests, strict=True):
        for layer in range(layers):
            for who, token in zip(present, step[layer], strict=True):
                matrix = matrices.setdefault(who, [[0] * size for _ in range(layers)])
                for expert in token:
                    matrix[layer][expert] += 1
            target = (layer + lookahead) % layers
            shares = [
                most_alike(matrices[who], list(learned.values()), target)
                for who in dict.fromkeys(present)
            ]
            sums = {tuple(map(sum, zip(*one, strict=True))) for one in product(*shares)}
            allowed.append([ranked(dict(enumerate(one)), width) for one in sums])
    return allowed


def most_alike(
    matrix: list[list[int]], learned: list[list[list[int]]], layer: int
) -> set[tuple[float, ...]]:
    """Shares of `layer` in the learned matrices with the highest sum of cosines."""

    def cosine(a: list[int], b: list[int]) -> float:
        norm = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0

    sums = [sum(map(cosine, matrix, other)) for other in learned]
    near = [one for one, total in zip(learned, sums, strict=True) if total > max(sums) - 1e-9]
    return {tuple(count / max(sum(one[layer]), 1) for count in one[layer]) for one in near}


def next_gate(
    chosen: list[list[list[list[int]]]], weights: list[list[list[list[float]]]], width: int
) -> Names:
    """chosen[step][layer] and weights: each token's experts of the next layer; none at the last."""
    named = []
    for step, heavy in zip(chosen, weights, strict=True):
        for tokens, parts in zip(step, heavy, strict=True):
            score: dict[int, float] = {}
            for token, part in zip(tokens, parts, strict=True):
                for expert, weight in zip(token, part, strict=True):
                    score[expert] = score.get(expert, 0.0) + weight
            named.append(ranked(dict(sorted(score.items())), width))
        named.append([])
    return named
