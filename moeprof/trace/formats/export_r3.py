"""Routing replay (R3): a vLLM response a line, as training frameworks take it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.formats.block import Findings
from moeprof.trace.reader import Trace
from moeprof.trace.schema import expert_dtype

NO_SEQUENCE = "request without one row for every position"
_GROUP_BYTES = 8 << 20  # ids of the requests that are gathered together
_Places = NDArray[np.int64]  # rows of the trace, by position


def write_r3(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """`routed_experts` of every request as base64 .npy [tokens, all layers, k].

    Requests need a row for each position from 0; of a row that was run twice the last counts.
    Dense and unrecorded layers are zero, as in the engine. Memory holds 24 bytes a token, and ids
    of one request or 8 MiB of them; the trace is read anew for each group of requests.
    """
    prompts = {request.index: request.prompt_tokens for request in trace.requests}
    written = 0
    for group in _groups(_sequences(trace, found), trace):
        ids = _gathered(trace, np.concatenate([places for _, places in group]))
        start = 0
        for index, places in group:
            stop = start + len(places)
            file.write(_response(trace, ids[start:stop], prompts.get(index)))
            start = stop
        written += len(group)
    return written


def _sequences(trace: Trace, found: Findings) -> Iterator[tuple[int, _Places]]:
    """Requests with a row for every position: index, and the rows in order."""
    order = np.lexsort((trace.position, trace.request))  # stable: of equal places the last is last
    request = trace.request[order]
    starts = np.flatnonzero(request[1:] != request[:-1]) + 1
    for places in np.split(order, starts) if len(order) else ():
        index = int(trace.request[places[0]])
        position = trace.position[places]
        last = np.append(position[1:] != position[:-1], True)
        if index < 0 or not np.array_equal(position[last], np.arange(last.sum())):
            found.skip(NO_SEQUENCE)
            continue
        yield index, places[last]


def _groups(
    sequences: Iterator[tuple[int, _Places]], trace: Trace
) -> Iterator[list[tuple[int, _Places]]]:
    """Requests whose ids fit together into what may be held; a longer one alone."""
    most = max(_GROUP_BYTES // (trace.model.layers * trace.top_k), 1)
    group: list[tuple[int, _Places]] = []
    rows = 0
    for index, places in sequences:
        if group and rows + len(places) > most:
            yield group
            group, rows = [], 0
        group.append((index, places))
        rows += len(places)
    if group:
        yield group


def _gathered(trace: Trace, places: _Places) -> NDArray[Any]:
    """[places, all layers, k] ids of those rows, from the columns as they are stored."""
    dtype = expert_dtype(trace.experts_per_layer)
    ids = np.zeros((len(places), trace.model.layers, trace.top_k), dtype)
    order = np.argsort(places)
    ordered = places[order]
    for layer in trace.layers:
        for part in trace.batches(layer):
            ends = np.searchsorted(ordered, (part.start, part.start + len(part.experts)))
            here = order[slice(*ends)]
            rows = places[here] - part.start
            chosen = part.experts[rows]
            if part.recorded is not None:
                chosen = np.where(part.recorded[rows][:, None], chosen, 0)
            ids[here, layer] = chosen
    return ids


def _response(trace: Trace, ids: NDArray[Any], prompt: int | None) -> bytes:
    npy = io.BytesIO()
    np.save(npy, ids, allow_pickle=False)
    response: dict[str, Any] = {
        "model": trace.model.name,
        "choices": [{"index": 0, "routed_experts": base64.b64encode(npy.getbuffer()).decode()}],
    }
    if prompt is not None:
        output = len(ids) - prompt + 1
        response["usage"] = {"prompt_tokens": prompt, "completion_tokens": output}
    return json.dumps(response).encode() + b"\n"
