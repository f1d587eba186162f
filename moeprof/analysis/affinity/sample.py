"""Which tokens affinity is counted on, and the blocks of requests that judge each other.

Tokens of one request are alike, so requests are what is drawn, dealt and left out, never tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace import Phase, Trace

MOST_TOKENS = 150_000
LEAST_REQUESTS, MOST_REQUESTS = 128, 4096  # of a sample, where there are as many
BLOCKS = 32


class TokenSample(NamedTuple):
    """Rows of a trace by block and request. Blocks of even number are one half, odd the other."""

    rows: NDArray[np.int64]  # [tokens]
    request: NDArray[np.int64]  # [tokens] number of the request, from 0
    requests: int
    requests_recorded: int  # that it was drawn from
    block: NDArray[np.int64]  # [tokens] ascending
    blocks: int
    spans: bool  # one request alone: blocks are spans of it


def sample_tokens(trace: Trace, phase: Phase | None, seed: int) -> TokenSample:
    """All tokens of `phase`, or of whole requests drawn by `seed` until there are enough.

    Where fewer than LEAST_REQUESTS would do, as many are kept and every n-th token of each.
    Raises InputError where there are none, or counts only.
    """
    if trace.counts_only:
        raise InputError(f"{trace}: holds counts only, not which experts tokens choose together")
    rows = np.arange(trace.tokens) if phase is None else np.flatnonzero(trace.phase == phase)
    if len(rows) < 2:
        words = "tokens" if phase is None else f"{phase.name.lower()} tokens"
        raise InputError(f"{trace}: holds {len(rows)} {words}, affinity needs at least two")
    _, request, sizes = np.unique(trace.request[rows], return_inverse=True, return_counts=True)
    recorded = len(sizes)
    if len(rows) > MOST_TOKENS:
        rows, request = _thinned(rows, request, sizes, np.random.default_rng(seed))
        _, request, sizes = np.unique(request, return_inverse=True, return_counts=True)
    order = np.lexsort((trace.position[rows], request))
    rows, request = rows[order], request[order]
    spans = len(sizes) == 1
    count = min(BLOCKS, len(rows) if spans else len(sizes))
    block = np.arange(len(rows)) * count // len(rows) if spans else _dealt(sizes, count)[request]
    order = np.argsort(block, kind="stable")
    return TokenSample(
        rows[order], request[order], len(sizes), recorded, block[order], count, spans
    )


def _thinned(
    rows: NDArray[np.int64],
    request: NDArray[np.int64],
    sizes: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    drawn = rng.permutation(len(sizes))
    enough = int(np.searchsorted(np.cumsum(sizes[drawn]), MOST_TOKENS, side="right"))
    kept = np.zeros(len(sizes), bool)
    kept[drawn[: min(max(enough, LEAST_REQUESTS), MOST_REQUESTS)]] = True
    there = np.flatnonzero(kept[request])
    there = there[:: -(-len(there) // MOST_TOKENS)]
    return rows[there], request[there]


def _dealt(sizes: NDArray[np.int64], blocks: int) -> NDArray[np.int64]:
    """[requests] block of each: dealt out by length, the longest first, there and back."""
    block = np.empty(len(sizes), np.int64)
    turn = np.arange(len(sizes)) % (2 * blocks)
    block[np.argsort(-sizes, kind="stable")] = np.minimum(turn, 2 * blocks - 1 - turn)
    return block
