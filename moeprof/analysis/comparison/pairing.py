"""Did two recordings see the same requests, and the same tokens?

Requests are the same where their indices, labels and prompt lengths agree, as when one file of
prompts was recorded twice. Tokens are the same up to the first of another id in their request:
behind it the texts differ. Where ids were not recorded only prompts are known to be the same,
since what two checkpoints answer may differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Phase, Trace


class Requests(NamedTuple):
    """The requests of one trace that have tokens, in order of index."""

    indices: NDArray[np.int32]  # [requests]
    place: NDArray[np.int32]  # [tokens] of each token's request in `indices`
    tokens: NDArray[np.int64]  # [requests]
    labels: list[str]  # [requests], '' where there is none
    prompts: list[int | None]  # [requests] prompt tokens, None where not known


class CommonTokens(NamedTuple):
    """Tokens that both recorded: row `rows_a[i]` of A is the token of row `rows_b[i]` of B."""

    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]
    request: NDArray[np.int64]  # place of its request
    known_by: str  # in words: how they are known to be the same


def find_requests(trace: Trace) -> Requests:
    """The requests of `trace`; of a recording of counts one that stands for all."""
    if trace.counts_only:
        one = np.zeros(1, np.int32)
        return Requests(one, one, np.array([trace.tokens]), [""], [None])
    index, place, tokens = np.unique(trace.request, return_inverse=True, return_counts=True)
    known = {request.index: request for request in trace.requests}
    described = [known.get(int(number)) for number in index]
    labels = [(request.label or "") if request else "" for request in described]
    prompts = [request.prompt_tokens if request else None for request in described]
    return Requests(index, place.astype(np.int32), tokens, labels, prompts)


def are_same(a: Requests, b: Requests) -> bool:
    """True where both are the requests of one workload: they may be compared in pairs."""
    if not np.array_equal(a.indices, b.indices) or a.labels != b.labels:
        return False
    lengths = [(one, other) for one, other in zip(a.prompts, b.prompts, strict=True)]
    known = [pair for pair in lengths if None not in pair]
    return all(one == other for one, other in known) and (
        len(known) == len(lengths) or np.array_equal(a.tokens, b.tokens)
    )


def find_common_tokens(
    a: Trace, b: Trace, requests_a: Requests, requests_b: Requests, *, same_tokens: bool = False
) -> CommonTokens | None:
    """The tokens of the same requests that both recorded, None where none are known to be.

    `same_tokens` takes it that tokens of one request and position are the same, whatever the
    traces say of it.
    """
    keys_a, rows_a = _keys(a, requests_a)
    keys_b, rows_b = _keys(b, requests_b)
    if not np.array_equal(keys_a, keys_b):
        _, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
        rows_a, rows_b = rows_a[at_a], rows_b[at_b]
    request = requests_a.place[rows_a].astype(np.int64)
    if same_tokens:
        keep, known_by = np.ones(len(request), bool), "as asked, by request and position"
    elif a.manifest.token_ids and b.manifest.token_ids:
        keep = _before_a_difference(a.token_id[rows_a] != b.token_id[rows_b], request)
        known_by = "by their ids"
    else:
        keep = (a.phase[rows_a] != Phase.DECODE) & (b.phase[rows_b] != Phase.DECODE)
        known_by = "prompts alone, by request and position: ids were not recorded"
    if not keep.any():
        return None
    order = np.flatnonzero(keep)[np.argsort(rows_a[keep])]  # as A is stored: read in order
    return CommonTokens(rows_a[order], rows_b[order], request[order], known_by)


def _keys(trace: Trace, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each (request, position), and the first row that has it."""
    keys = trace.request.astype(np.int64) << 32 | trace.position.astype(np.int64)
    unique: tuple[NDArray[np.int64], NDArray[np.int64]] = np.unique(keys, return_index=True)
    return unique


def _before_a_difference(
    differs: NDArray[np.bool_], request: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """[tokens] no token of the request differs up to here; tokens in order of request."""
    so_far = np.cumsum(differs)
    starts = np.searchsorted(request, request)  # the first token of each one's request
    before: NDArray[np.bool_] = so_far == so_far[starts] - differs[starts]
    return before
