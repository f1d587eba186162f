"""The compiled loops of predictors. Import this only where one is called.

`named` [events, width] is filled with the experts named at each event, best first, for the event
`lookahead` later, -1 where there are fewer; it starts as -1 everywhere. Events and their experts
are those of `demand.Demand`, which has seen to it that every id names an expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moeprof.cache.prefetch.predictors.similar import Alike


@njit(cache=True, nogil=True, inline="always")
def take_best(score: NDArray[np.float64], ids: NDArray[np.uint16], row: NDArray[np.int32]) -> None:
    """Fill `row` with the `ids` of the highest scores above 0, of equals the first, and spend
    `score`.
    """
    for place in range(min(row.shape[0], score.shape[0])):
        best = 0
        for other in range(1, score.shape[0]):
            if score[other] > score[best]:
                best = other
        if score[best] <= 0:
            return
        row[place] = ids[best]
        score[best] = 0


@njit(cache=True, nogil=True)
def name_as_before(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    tokens: NDArray[np.int32],
    first_event: int,
    back: int,
    named: NDArray[np.int32],
) -> None:
    """What the event `back` before needed, by tokens."""
    for index in range(named.shape[0]):
        event = first_event + index - back
        if event >= 0:
            part = slice(starts[event], starts[event + 1])
            take_best(tokens[part].astype(np.float64), experts[part], named[index])


@njit(cache=True, nogil=True)
def _add_pairs(
    sources: NDArray[np.int64],
    followers: NDArray[np.int64],
    layer: int,
    came: NDArray[np.float64],
    uses: NDArray[np.float64],
) -> None:
    """Count each of `sources`, experts of `layer`, as followed by `followers`; -1 is nobody."""
    if sources[0] < 0 or followers[0] < 0:
        return
    for source in sources:
        uses[layer, source] += 1
        for follower in followers:
            came[layer, source, follower] += 1


@njit(cache=True, nogil=True)
def learn_transitions(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    first_step: int,
    request: NDArray[np.int64],
    lookahead: int,
    before: tuple[NDArray[np.int64], NDArray[np.int64]],
    came: NDArray[np.float64],
    uses: NDArray[np.float64],
) -> None:
    """Count what each expert of a token was followed by: experts [layers, rows, k].

    came [layers, experts, experts] tokens that chose the second `lookahead` layers after the first,
    in the same step or, past the last layer, as the request's next token; uses [layers, experts]
    tokens of the first that had such a token after them. request [rows] is -1 where not known.
    `before` is carried from chunk to chunk: each request's latest step, -1 for none, and the
    experts [requests, layers, k] of its latest token, -1 where not recorded.
    """
    layers, _, k = experts.shape
    last_step, last = before
    now = np.empty((layers, k), np.int64)
    for index in range(starts.shape[0] - 1):
        step = first_step + index
        for row in range(starts[index], starts[index + 1]):
            for layer in range(layers):
                for slot in range(k):
                    now[layer, slot] = experts[layer, row, slot] if recorded[layer, row] else -1
            who = request[row]
            for layer in range(lookahead, layers):
                _add_pairs(now[layer - lookahead], now[layer], layer - lookahead, came, uses)
            if who < 0:
                continue
            if last_step[who] < step:
                for layer in range(lookahead):
                    source = layers - lookahead + layer
                    _add_pairs(last[who, source], now[layer], source, came, uses)
            last_step[who] = step
            last[who] = now


@njit(cache=True, nogil=True)
def name_by_transitions(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    tokens: NDArray[np.int32],
    first_event: int,
    share: NDArray[np.float64],
    named: NDArray[np.int32],
) -> None:
    """The highest sums of share [layers, experts, experts] over what the event's tokens chose."""
    layers, size, _ = share.shape
    score = np.empty(size)
    ids = np.arange(size).astype(np.uint16)
    for index in range(named.shape[0]):
        event = first_event + index
        score[:] = 0
        for place in range(starts[event], starts[event + 1]):
            followed = share[event % layers, experts[place]]
            for other in range(size):
                score[other] += tokens[place] * followed[other]
        take_best(score, ids, named[index])


@njit(cache=True, nogil=True)
def count_by_request(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    place: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Add the rows of experts [layers, rows, k] to counts [places, layers, experts]; place [rows]
    is -1 for rows that are not counted.
    """
    layers, rows, _ = experts.shape
    for layer in range(layers):
        for row in range(rows):
            if place[row] >= 0 and recorded[layer, row]:
                for expert in experts[layer, row]:
                    counts[place[row], layer, expert] += 1


@njit(cache=True, nogil=True)
def name_by_likeness(
    experts: NDArray[np.unsignedinteger],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    place: NDArray[np.int64],
    begins: NDArray[np.bool_],
    lookahead: int,
    unit: NDArray[np.float64],
    share: NDArray[np.float64],
    alike: Alike,
    named: NDArray[np.int32],
) -> None:
    """What the learned requests used that are most like the step's: experts [layers, rows, k].

    place [rows] is the row's request in `alike`, which is carried from chunk to chunk; begins
    [rows] marks a request's first row. unit [layers, experts, learned], share [learned, layers,
    experts].
    """
    layers, _, _ = experts.shape
    size = unit.shape[1]
    ids = np.arange(size).astype(np.uint16)
    score = np.empty(size)
    seen = np.full(alike.total.shape[0], -1, np.int64)
    for step in range(starts.shape[0] - 1):
        for row in range(starts[step], starts[step + 1]):
            if begins[row]:
                alike.matrix[place[row]] = 0
                alike.dot[place[row]] = 0
                alike.cosine[place[row]] = 0
                alike.total[place[row]] = 0
        for layer in range(layers):
            event = step * layers + layer
            score[:] = 0
            for row in range(starts[step], starts[step + 1]):
                if recorded[layer, row]:
                    _add_token(experts[layer, row], layer, place[row], unit, alike)
            for row in range(starts[step], starts[step + 1]):
                who = place[row]
                if seen[who] != event:
                    seen[who] = event
                    best = _most_alike(layer, who, alike)
                    score += share[best, (layer + lookahead) % layers]
            take_best(score, ids, named[event])


@njit(cache=True, nogil=True)
def _add_token(
    experts: NDArray[np.unsignedinteger],
    layer: int,
    who: int,
    unit: NDArray[np.float64],
    alike: Alike,
) -> None:
    """One more token of request `who` uses `experts` of `layer`."""
    for expert in experts:
        alike.matrix[who, layer, expert] += 1
        alike.dot[who, layer] += unit[layer, expert]


@njit(cache=True, nogil=True)
def _most_alike(layer: int, who: int, alike: Alike) -> int:
    """The learned request most like `who`, whose row of `layer` is new."""
    norm = 0.0
    for count in alike.matrix[who, layer]:
        norm += float(count) * count
    if norm > 0:
        cosine = alike.dot[who, layer] / np.sqrt(norm)
        alike.total[who] += cosine - alike.cosine[who, layer]
        alike.cosine[who, layer] = cosine
    return int(np.argmax(alike.total[who]))


@njit(cache=True, nogil=True)
def name_by_weight(
    experts: NDArray[np.unsignedinteger],
    weights: NDArray[np.float64],
    recorded: NDArray[np.bool_],
    starts: NDArray[np.int64],
    size: int,
    named: NDArray[np.int32],
) -> None:
    """The experts with the highest sums of weights, of one layer: experts and weights [rows, k]."""
    ids = np.arange(size).astype(np.uint16)
    score = np.empty(size)
    for step in range(starts.shape[0] - 1):
        score[:] = 0
        for row in range(starts[step], starts[step + 1]):
            for slot in range(experts.shape[1] if recorded[row] else 0):
                score[experts[row, slot]] += weights[row, slot]
        take_best(score, ids, named[step])


@njit(cache=True, nogil=True)
def name_with_foresight(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    first_event: int,
    lookahead: int,
    named: NDArray[np.int32],
) -> None:
    """What the event will need, in order of first use."""
    for index in range(named.shape[0]):
        event = first_event + index + lookahead
        if event < starts.shape[0] - 1:
            for place in range(min(starts[event + 1] - starts[event], named.shape[1])):
                named[index, place] = experts[starts[event] + place]


@njit(cache=True, nogil=True, inline="always")
def _draw(seed: np.uint64, event: int, expert: int) -> float:
    """A number in [0, 1) that depends on nothing else: splitmix64 (Steele et al. 2014)."""
    word = seed + np.uint64(event) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(expert + 1)
    for _ in range(2):
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = word ^ (word >> np.uint64(31))
    return float(word >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True, nogil=True)
def name_with_recall(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    first_event: int,
    lookahead: int,
    size: int,
    recall: float,
    seed: np.uint64,
    named: NDArray[np.int32],
) -> None:
    """Each expert that the event will need with probability `recall`, the rest of the width wrong,
    in an order that is drawn.
    """
    ids = np.arange(size).astype(np.uint16)
    score = np.empty(size)
    needed = np.zeros(size, np.bool_)
    chosen = np.empty(size, np.bool_)
    for index in range(named.shape[0]):
        event = first_event + index + lookahead
        if event >= starts.shape[0] - 1:
            return
        part = experts[starts[event] : starts[event + 1]]
        needed[:] = False
        for expert in part:
            needed[expert] = True
        right = 0
        for expert in range(size):
            chosen[expert] = needed[expert] and _draw(seed, 2 * event, expert) < recall
            right += chosen[expert]
        _add_wrong(needed, chosen, named.shape[1] - right, seed, event, score)
        for expert in range(size):
            drawn = 1 - _draw(seed, 2 * event + 1, expert + size)
            score[expert] = drawn if chosen[expert] else 0.0
        take_best(score, ids, named[index])


@njit(cache=True, nogil=True, inline="always")
def _add_wrong(
    needed: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    count: int,
    seed: np.uint64,
    event: int,
    score: NDArray[np.float64],
) -> None:
    """Choose `count` more experts that are not needed, or all there are."""
    for expert in range(len(needed)):
        score[expert] = 0.0 if needed[expert] else 1 - _draw(seed, 2 * event + 1, expert)
    for _ in range(count):
        best = 0
        for other in range(1, len(score)):
            if score[other] > score[best]:
                best = other
        if score[best] <= 0:
            return
        chosen[best] = True
        score[best] = 0


@njit(cache=True, nogil=True)
def judge(
    starts: NDArray[np.int64],
    experts: NDArray[np.uint16],
    first_event: int,
    first_counted: int,
    lookahead: int,
    named: NDArray[np.int32],
    found: NDArray[np.int64],
) -> None:
    """Add to found [3] the experts named, those of them that were needed, and those needed."""
    for index in range(named.shape[0]):
        target = first_event + index + lookahead
        if first_event + index < first_counted or target >= starts.shape[0] - 1:
            continue
        members = experts[starts[target] : starts[target + 1]]
        found[2] += len(members)
        for expert in named[index]:
            if expert >= 0:
                found[0] += 1
                for member in members:
                    found[1] += member == expert
