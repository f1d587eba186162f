"""Prompts that begin alike: system prompts and templates, counted once for every request.

A router of a causal model sees only what came before, so tokens under the same prefix go the same
way each time: copies, which are no new evidence, make routing look more local and more specialized.
With token ids a shared prefix is exact. Without them it is one where the experts of every token
agree in nearly all layers: nearly, because the rounding of another batch may tip a router.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.result import NOT_JSON, Result
from moeprof.trace import Trace

MIN_TOKENS = 8  # fewer may agree by chance, and a few first tokens alike are no template
AGREEMENT = 0.75  # of the layers; other tokens agree in far fewer
ANCHORS = 3  # first layers, of which one must agree entirely: they see least of rounding
WIDENED = 32  # largest groups that others may still join
CHUNK = 16  # positions that are looked at together at first
CELLS = 8_000_000  # signatures at once: 64 MB
SHOWN = 5


@dataclass(frozen=True)
class SharedPrefix(Result):
    """One beginning that several requests share."""

    tokens: int  # its length
    requests: int  # that begin with it
    labels: list[str]


@dataclass(frozen=True)
class SharedPrefixes(Result):
    """How much of a trace is the same beginning again. Of prefixes of 8 tokens and more."""

    seen_by: str  # "token ids", or "routing" where those were not recorded
    requests: int  # that begin as another one does
    request_share: float
    shared_tokens: int  # tokens in such a beginning
    token_share: float
    repeated_tokens: int  # of these, copies: all but the first of each label
    prefixes: list[SharedPrefix]  # the first 5, most tokens over all requests first
    repeated: NDArray[np.bool_] = field(repr=False, metadata=NOT_JSON)  # [tokens] those copies


def find_shared_prefixes(trace: Trace) -> SharedPrefixes:
    """The beginnings that requests of `trace` share, by token ids or else by their routing.

    Only requests recorded from position 0 without a gap are compared. Raises TraceError on a
    trace of counts.
    """
    starts, order = _request_rows(trace)
    search = _Search(trace, starts, order)
    search.run()
    copies = np.where(search.copies >= MIN_TOKENS, search.copies, 0)
    shared = np.where(search.shared >= MIN_TOKENS, search.shared, 0)
    repeated = np.zeros(trace.tokens, bool)
    for request in np.flatnonzero(copies):
        repeated[order[starts[request] : starts[request] + copies[request]]] = True
    ended = sorted(search.ended, key=lambda one: -one.tokens * (one.requests - 1))
    requests = len(np.unique(trace.request))
    return SharedPrefixes(
        seen_by="token ids" if trace.manifest.token_ids else "routing",
        requests=int((shared > 0).sum()),
        request_share=float((shared > 0).sum() / max(requests, 1)),
        shared_tokens=int(shared.sum()),
        token_share=float(shared.sum() / max(trace.tokens, 1)),
        repeated_tokens=int(repeated.sum()),
        prefixes=ended[:SHOWN],
        repeated=repeated,
    )


def _request_rows(trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[requests] where each begins in [tokens] rows in order of request and position.

    Without what has no request or no position, and without requests that begin later than at 0.
    """
    rows = np.flatnonzero((trace.request >= 0) & (trace.position >= 0))
    order = rows[np.lexsort((trace.position[rows], trace.request[rows]))]
    request = trace.request[order]
    starts = np.flatnonzero(np.diff(request, prepend=-1) != 0)
    return starts[trace.position[order[starts]] == 0], order


class _Search:
    """Requests in groups that share all tokens so far, split position by position."""

    def __init__(self, trace: Trace, starts: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        self._trace, self._starts, self._order = trace, starts, order
        self._label = trace.label_code[order[starts]]
        self._tables = _random_table(trace.experts_per_layer)
        self.shared = np.zeros(len(starts), np.int64)  # tokens shared with some other request
        self.copies = np.zeros(len(starts), np.int64)  # of these, with an earlier one of its label
        self.ended: list[SharedPrefix] = []

    def run(self) -> None:
        """Fill `shared`, `copies` and `ended`."""
        groups = [np.arange(len(self._starts))] if len(self._starts) else []
        position, chunk = 0, CHUNK
        while groups:
            alive = np.sort(np.concatenate(groups))
            most = CELLS // (len(self._trace.layers) * len(alive))
            width = max(1, min(chunk, most))
            signature = self._signatures(alive, position, width)
            for column in range(width):
                groups = self._split(groups, alive, signature[:, :, column], position + column)
            position, chunk = position + width, 2 * chunk

    def _split(
        self,
        groups: list[NDArray[np.intp]],
        alive: NDArray[np.intp],
        signature: NDArray[np.uint64],
        position: int,
    ) -> list[NDArray[np.intp]]:
        """The parts of each group that also share the token at `position`."""
        parts: list[NDArray[np.intp]] = []
        for group in groups:
            columns = signature[:, np.searchsorted(alive, group)]
            found = [group[part] for part in _alike(columns)]
            if position >= MIN_TOKENS and not any(len(part) == len(group) for part in found):
                self.ended.append(self._prefix(group, position))
            parts += found
        for part in parts:
            self.shared[part] = position + 1
            _, first = np.unique(self._label[part], return_index=True)
            self.copies[np.delete(part, first)] = position + 1
        return parts

    def _prefix(self, group: NDArray[np.intp], tokens: int) -> SharedPrefix:
        names = [*self._trace.labels, ""]  # -1 is no label
        labels = [names[code] for code in np.unique(self._label[group])]
        return SharedPrefix(tokens, len(group), [name for name in labels if name])

    def _signatures(self, alive: NDArray[np.intp], position: int, width: int) -> NDArray[np.uint64]:
        """[layers or 1, alive, width] what each token is told by; 0: there is none."""
        place = self._starts[alive][:, None] + position + np.arange(width)
        inside = place < len(self._order)
        rows = self._order[np.where(inside, place, 0)]
        there = inside & (self._trace.request[rows] == self._trace.request[rows[:, :1]])
        there &= self._trace.position[rows] == position + np.arange(width)
        if self._trace.manifest.token_ids:
            ids = self._trace.token_id[rows].astype(np.int64) + 1  # -1 is not known
            return np.where(there, ids, 0).astype(np.uint64)[None]
        layers = [
            _layer_signature(self._trace, layer, rows, self._tables) for layer in self._trace.layers
        ]
        return np.where(there, np.stack(layers), np.uint64(0))


def _random_table(experts: int) -> NDArray[np.uint64]:
    """A random number an expert: the sum over a set of experts tells sets apart in any order."""
    return np.random.default_rng(0).integers(1, 1 << 63, experts, np.uint64)


def _layer_signature(
    trace: Trace, layer: int, rows: NDArray[np.int64], table: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """[...] the set of experts that tokens `rows` [...] chose in `layer`; 0 if not recorded."""
    found = np.zeros(rows.shape, np.uint64)
    for part in trace.batches(layer):
        here = (rows >= part.start) & (rows < part.start + len(part.experts))
        if here.any():
            at = rows[here] - part.start
            ids = part.experts[at].astype(np.int64).clip(max=len(table) - 1)
            values = table[ids].sum(axis=1)
            found[here] = values if part.recorded is None else values * part.recorded[at]
    return found


def _alike(signature: NDArray[np.uint64]) -> list[NDArray[np.intp]]:
    """Groups of two and more requests that agree, of `signature` [layers, requests]."""
    left = np.flatnonzero(signature.any(axis=0))
    groups: list[NDArray[np.intp]] = []
    for anchor in signature[:ANCHORS]:
        found = list(_agreeing(signature, left[anchor[left] != 0], anchor))
        groups += found
        left = np.setdiff1d(left, np.concatenate([left[:0], *found]))
        groups.sort(key=len, reverse=True)
        for place, group in enumerate(groups[:WIDENED]):  # by those that rounding tipped there
            same = _agree(signature, left, group[0])
            groups[place] = np.union1d(group, left[same])
            left = left[~same]
    return groups


def _agreeing(
    signature: NDArray[np.uint64], requests: NDArray[np.intp], anchor: NDArray[np.uint64]
) -> Iterator[NDArray[np.intp]]:
    """Groups of those that are alike in the layer `anchor` [requests], where few others are."""
    order = requests[np.argsort(anchor[requests], kind="stable")]
    for left in np.split(order, np.flatnonzero(np.diff(anchor[order])) + 1):
        while len(left) > 1:
            same = _agree(signature, left, left[0])
            if same.sum() > 1:
                yield left[same]
            left = left[~same]


def _agree(
    signature: NDArray[np.uint64], requests: NDArray[np.intp], with_request: np.intp
) -> NDArray[np.bool_]:
    """[requests] which choose the same experts in nearly all layers that both have."""
    these, other = signature[:, requests], signature[:, with_request, None]
    both = (these != 0) & (other != 0)
    agreeing = ((these == other) & both).sum(axis=0)
    of = both.sum(axis=0)
    same: NDArray[np.bool_] = (agreeing >= AGREEMENT * of) & (of > 0)
    return same
