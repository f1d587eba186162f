"""The compiled inner loops of replay. Import this only where one is called.

Recency is exact: each kernel finds, for every access, how many other experts were used since the
expert's last use. A cache of C slots under LRU holds the expert if and only if that number is
below C (Mattson et al. 1970, doi:10.1147/sj.92.0078), so one pass answers every size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_WIDTH = 32  # slots of the timeline counted together, and blocks of slots again


@njit(cache=True, nogil=True, inline="always")
def _gather_members(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    start: int,
    stop: int,
    stamp: NDArray[np.int64],
    event: int,
    members: NDArray[np.int64],
) -> tuple[int, int]:
    """The distinct experts of rows start to stop, in order of first use.

    Returns how many, and how many ids name no expert: those are passed over, since Numba would
    write outside of `stamp` and not complain.
    """
    count = foreign = 0
    for row in range(start, stop):
        if recorded[row]:
            for slot in range(experts.shape[1]):
                expert = experts[row, slot]
                if expert >= stamp.shape[0]:
                    foreign += 1
                elif stamp[expert] != event:
                    stamp[expert] = event
                    members[count] = expert
                    count += 1
    return count, foreign


@njit(cache=True, nogil=True)
def layer_distances(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    rank: NDArray[np.unsignedinteger],
    stamp: NDArray[np.int64],
    first_event: int,
    histogram: NDArray[np.int64],
) -> int:
    """Add the stack distances of one layer's accesses to `histogram` [experts + 1].

    experts [rows, k]; event i is rows starts[i] to starts[i + 1]. `rank` [experts] is each
    expert's place in recency order and `stamp` [experts] its last event, -1 while unused; both
    are carried from chunk to chunk. The last entry of `histogram` counts first uses.
    Atomic: all ranks of an event are read before any of them moves. Returns how many ids name no
    expert.
    """
    size = rank.shape[0]
    foreign = 0
    members = np.empty(size, np.int64)
    seen = np.empty(size, np.bool_)
    for expert in range(size):
        seen[expert] = stamp[expert] >= 0
    for index in range(starts.shape[0] - 1):
        event = first_event + index
        count, unknown = _gather_members(
            experts, recorded, starts[index], starts[index + 1], stamp, event, members
        )
        foreign += unknown
        for i in range(count):
            expert = members[i]
            if seen[expert]:
                histogram[rank[expert]] += 1
            else:
                histogram[size] += 1
                seen[expert] = True
        for i in range(count):
            place = rank[members[i]]
            for other in range(size):
                rank[other] += rank[other] < place
            rank[members[i]] = 0
    return foreign


class Timeline(NamedTuple):
    """Recency of many items: one slot an access, set while it is its item's latest.

    `latest` is counted at two coarser grains, so that "how many after this slot" is three sums
    over short contiguous runs: 14 million accesses/s on 7,296 items where one grain gives 7.
    """

    latest: NDArray[np.uint8]  # [slots] 1 where the slot is some item's latest access
    blocks: NDArray[np.uint8]  # [slots / W] sums of `latest`
    spans: NDArray[np.int32]  # [slots / W^2] sums of `blocks`
    owner: NDArray[np.int32]  # [slots] item that made the access
    place: NDArray[np.int32]  # [items] slot of the item's latest access, -1 while unused
    now: NDArray[np.int64]  # [1] next free slot


def new_timeline(items: int) -> Timeline:
    """A timeline for `items`, with room for three accesses an item between two compactions."""
    spans = -(-4 * items // (_WIDTH * _WIDTH))
    slots = spans * _WIDTH * _WIDTH
    return Timeline(
        np.zeros(slots, np.uint8),
        np.zeros(spans * _WIDTH, np.uint8),
        np.zeros(spans, np.int32),
        np.zeros(slots, np.int32),
        np.full(items, -1, np.int32),
        np.zeros(1, np.int64),
    )


@njit(cache=True, nogil=True, inline="always")
def _used_since(timeline: Timeline, slot: int) -> np.int64:
    """How many items were used after `slot`."""
    block = slot // _WIDTH
    span = block // _WIDTH
    total = np.int64(0)
    for i in range(slot + 1, (block + 1) * _WIDTH):
        total += timeline.latest[i]
    for i in range(block + 1, (span + 1) * _WIDTH):
        total += timeline.blocks[i]
    for i in range(span + 1, timeline.spans.shape[0]):
        total += timeline.spans[i]
    return total


@njit(cache=True, nogil=True)
def _compact(timeline: Timeline) -> None:
    """Move the latest accesses to the front, in order, and forget all others."""
    front = 0
    for slot in range(timeline.now[0]):
        if timeline.latest[slot]:
            owner = timeline.owner[slot]
            timeline.owner[front] = owner
            timeline.place[owner] = front
            front += 1
    timeline.latest[:front] = 1
    timeline.latest[front:] = 0
    for i in range(timeline.blocks.shape[0]):
        timeline.blocks[i] = min(max(front - i * _WIDTH, 0), _WIDTH)
    for i in range(timeline.spans.shape[0]):
        timeline.spans[i] = min(max(front - i * _WIDTH * _WIDTH, 0), _WIDTH * _WIDTH)
    timeline.now[0] = front


@njit(cache=True, nogil=True, inline="always")
def _touch(timeline: Timeline, item: int) -> None:
    """Make `item` the most recently used."""
    old = timeline.place[item]
    if old >= 0:
        timeline.latest[old] = 0
        timeline.blocks[old // _WIDTH] -= 1
        timeline.spans[old // (_WIDTH * _WIDTH)] -= 1
    slot = timeline.now[0]
    timeline.latest[slot] = 1
    timeline.blocks[slot // _WIDTH] += 1
    timeline.spans[slot // (_WIDTH * _WIDTH)] += 1
    timeline.owner[slot] = item
    timeline.place[item] = slot
    timeline.now[0] = slot + 1


@njit(cache=True, nogil=True)
def global_distances(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    timeline: Timeline,
    stamp: NDArray[np.int64],
    first_event: int,
    histogram: NDArray[np.int64],
) -> NDArray[np.int64]:
    """As `layer_distances`, over one cache for all layers.

    experts [layers, rows, k], recorded [layers, rows], stamp [layers, experts], histogram
    [layers x experts + 1]. Within a step, events come in order of layer, as the model runs.
    Returns [layers] how many ids name no expert.
    """
    layers, size = stamp.shape
    foreign = np.zeros(layers, np.int64)
    members = np.empty(size, np.int64)
    for index in range(starts.shape[0] - 1):
        event = first_event + index
        for layer in range(layers):
            count, unknown = _gather_members(
                experts[layer],
                recorded[layer],
                starts[index],
                starts[index + 1],
                stamp[layer],
                event,
                members,
            )
            foreign[layer] += unknown
            if timeline.now[0] + count > timeline.latest.shape[0]:
                _compact(timeline)
            for i in range(count):
                slot = timeline.place[layer * size + members[i]]
                distance = _used_since(timeline, slot) if slot >= 0 else layers * size
                histogram[distance] += 1
            for i in range(count):
                _touch(timeline, layer * size + members[i])
    return foreign


@njit(cache=True, nogil=True)
def link_uses(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    first_event: int,
    begin: int,
    seen: NDArray[np.int64],
    future: NDArray[np.int32],
) -> None:
    """Write each step into `future` [all rows, k] where its experts were named the time before, for
    one layer: experts [rows, k], recorded [rows], the rows from `begin` on.

    `seen` [experts, 3], carried from chunk to chunk, is the step that named each expert last, -1
    for none, and the first and the last place, row x k + slot, where it did.
    """
    k = experts.shape[1]
    for index in range(starts.shape[0] - 1):
        step = first_event + index
        for row in range(starts[index], starts[index + 1]):
            for slot in range(k if recorded[row] else 0):
                expert = experts[row, slot]
                if expert >= seen.shape[0]:
                    continue
                place = (begin + row) * k + slot
                if seen[expert, 0] != step:
                    for end in range(1, 3 if seen[expert, 0] >= 0 else 1):
                        future[seen[expert, end] // k, seen[expert, end] % k] = step
                    seen[expert, 0], seen[expert, 1] = step, place
                seen[expert, 2] = place


@njit(cache=True, nogil=True)
def count_uses(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    first_event: int,
    window: tuple[int, int],
    tokens: bool,
    last: NDArray[np.int64],
    uses: NDArray[np.int64],
) -> None:
    """Add to `uses` [experts] the events from step window[0] up to window[1] that name each expert
    of one layer, or their tokens: experts [rows, k], recorded [rows]. `last` [experts] is its last
    event so far, -1 while there is none.
    """
    for index in range(starts.shape[0] - 1):
        event = first_event + index
        inside = window[0] <= event < window[1]
        for row in range(starts[index], starts[index + 1]):
            for slot in range(experts.shape[1] if inside and recorded[row] else 0):
                expert = experts[row, slot]
                if expert < uses.shape[0] and (tokens or last[expert] != event):
                    last[expert] = event
                    uses[expert] += 1
