"""Slow models of engines' expert caches, from their sources as `Contract.source` names them.

A step is its tokens' routed ids, [token][slot], of one layer or of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence

Tokens = Sequence[Sequence[int]]


def llama_cpp(steps: Sequence[Tokens], slots: int, inserts: int = 2) -> list[tuple[int, int]]:
    """(hits, misses) of every step of one layer; an upload takes less than a step."""
    slot_expert: list[int | None] = [None] * slots
    last_use = [0] * slots
    flying: list[tuple[int, int]] = []
    pending: list[int] = []
    clock, counted = 0, []
    for tokens in steps:
        for expert, slot in flying:
            clock += 1
            slot_expert[slot], last_use[slot] = expert, clock
        busy: set[int] = set()
        flying = []
        for expert in list(reversed(pending))[:inserts]:
            if expert in slot_expert:
                continue
            open_slots = [slot for slot in range(slots) if slot not in busy]
            if not open_slots:
                break
            empty = [slot for slot in open_slots if slot_expert[slot] is None]
            slot = empty[0] if empty else min(open_slots, key=lambda one: last_use[one])
            slot_expert[slot] = None
            busy.add(slot)
            flying.append((expert, slot))
        pending = []
        hits = misses = 0
        for token in tokens if len(tokens) <= 4 else ():
            for expert in token:
                if expert in slot_expert:
                    hits += 1
                    clock += 1
                    last_use[slot_expert.index(expert)] = clock
                else:
                    misses += 1
                    if expert not in pending:
                        pending.append(expert)
        counted.append((hits, misses))
    return counted


def vllm(steps: Sequence[Tokens], slots: int) -> list[tuple[int, int]]:
    """(hits, misses) of every step of one layer."""
    held: dict[int, list[int]] = {}  # expert -> [uses, last]
    clock, counted = 0, []
    for tokens in steps:
        hits = misses = 0
        for wanted in _chunks(tokens, slots):
            for expert in sorted(wanted):
                if expert in held:
                    hits += 1
                    clock += 1
                    held[expert] = [held[expert][0] + 1, clock]
                    continue
                misses += 1
                if len(held) == slots:
                    free = [one for one in held if one not in wanted]
                    del held[min(free, key=lambda one: held[one][0] / (clock - held[one][1] + 1))]
                clock += 1
                held[expert] = [1, clock]
        counted.append((hits, misses))
    return counted


def _chunks(tokens: Tokens, slots: int) -> list[set[int]]:
    """The experts of runs of tokens that fit."""
    if len({expert for token in tokens for expert in token}) <= slots:
        return [{expert for token in tokens for expert in token}]
    chunks: list[set[int]] = [set()]
    for token in tokens:
        if len(chunks[-1] | set(token)) > slots:
            chunks.append(set())
        chunks[-1] |= set(token)
    return chunks


def free_token(
    steps: Sequence[tuple[bool, Sequence[Tokens]]], slots: int, experts: int
) -> list[int]:
    """Misses of every (step, layer) of (whether a prompt, tokens of every layer); None counted of
    prompts. One pool, `experts` a layer.
    """
    owner: list[int | None] = [None] * slots
    usage = [0] * slots
    clock, counted = 0, []
    for prompt, layers in steps:
        if prompt:
            clock += len(layers)
            _stream_prompt(owner, usage, clock, len(layers), experts)
            counted += [0] * len(layers)
            continue
        for layer, tokens in enumerate(layers):
            clock += 1
            wanted = {layer * experts + expert for token in tokens for expert in token}
            for slot, item in enumerate(owner):
                if item in wanted:
                    usage[slot] = clock
            missing = sorted(wanted - set(owner))
            for item in missing:
                slot = min(range(slots), key=lambda one: (usage[one], one))
                if usage[slot] == clock:
                    continue
                owner[slot], usage[slot] = item, clock
            counted.append(len(missing))
    return counted


def _stream_prompt(
    owner: list[int | None], usage: list[int], clock: int, layers: int, experts: int
) -> None:
    """What a prompt leaves of the pool."""
    slots = len(owner)
    if slots >= 2 * experts:
        for slot in range(2 * experts):
            owner[slot], usage[slot] = None, 0
        return
    for slot in range(slots):
        owner[slot], usage[slot] = None, 0
    for expert in range(min(experts, slots)):
        owner[expert], usage[expert] = (layers - 1) * experts + expert, clock


def moe_infinity(
    steps: Sequence[tuple[bool, Sequence[Tokens]]], slots: int, experts: int
) -> list[int]:
    """Misses of every (step, layer) of (whether a request begins, tokens of every layer)."""
    held: set[int] = set()
    visits: dict[int, int] = {}
    free, counted = slots, []
    for begins, layers in steps:
        if begins:
            visits.clear()
        for layer, tokens in enumerate(layers):
            wanted = sorted({layer * experts + expert for token in tokens for expert in token})
            missing = 0
            for item in wanted:
                if item not in held:
                    missing += 1
                    if free < 1:
                        open_ones = held - set(wanted)
                        if not open_ones:
                            continue
                        held.remove(
                            min(
                                open_ones,
                                key=lambda one: (
                                    visits.get(one, 0),
                                    one % experts,
                                    one // experts,
                                ),
                            )
                        )
                        free += 1
                    held.add(item)
                free -= 1
                visits[item] = visits.get(item, 0) + 1
            counted.append(missing)
    return counted
