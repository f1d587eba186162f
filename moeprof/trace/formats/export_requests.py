"""A recording's requests, and one layer's routing, as serving simulators take them.

LLMServingSim (github.com/casys-kaist/LLMServingSim, MIT, commit 5daddb2): a JSONL of requests
(`Router.load_requests`) and a gate function for `--expert-routing-policy CUSTOM`
(`GateRouter._custom_gate_function`), the one place where it takes routing. BLIS
(github.com/inference-sim/inference-sim, Apache-2.0, commit f90a1e3): trace v2, a YAML header and a
CSV (`LoadTraceV2`); it takes no routing at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import Findings
from moeprof.trace.formats.export_arrays import expert_load
from moeprof.trace.reader import Trace

NO_LENGTHS = "request whose prompt or output length is not known"
AT_ONCE = "arrival times were not recorded: all requests arrive at 0"
BLIS_COLUMNS = (
    "request_id,client_id,tenant_id,slo_class,session_id,round_index,prefix_group,prefix_length,"
    "streaming,input_tokens,output_tokens,text_tokens,image_tokens,audio_tokens,video_tokens,"
    "reason_ratio,model,deadline_us,server_input_tokens,arrival_time_us,send_time_us,"
    "first_chunk_time_us,last_chunk_time_us,num_chunks,status,error_message,finish_reason"
)
_GATE_ROWS = 8192
_GATE = '''"""Recorded routing for LLMServingSim: {source}, layer {layer}.

    from {{this file}} import recorded_gate
    GateRouter._custom_gate_function = recorded_gate  # then --expert-routing-policy CUSTOM

Each token takes the experts of the next recorded one. The gate is not told the layer, so all
layers route like this one, which has the median imbalance, {imbalance:.3f}.
"""

ROWS = {rows}


def recorded_gate(self, token_idx, E, k):
    """The k experts of the next token."""
    if (E, k) != ({experts}, {top_k}):
        raise ValueError(f"recorded with {experts} experts, top-{top_k}, not {{E}}, top-{{k}}")
    self.recorded_row = getattr(self, "recorded_row", -1) + 1
    return ROWS[self.recorded_row % len(ROWS)]
'''


class _Served(NamedTuple):
    """A request as a simulator knows it."""

    request: int
    arrival_s: float  # since the first
    prompt_tokens: int
    output_tokens: int


def _served(trace: Trace, found: Findings) -> list[_Served]:
    """Requests by arrival. Lengths are stated, or follow from phases and positions.

    The last token of an output is sampled and not run, so it has no row.
    """
    known = {request.index: request for request in trace.requests}
    indices, prefill, tokens = _recorded_lengths(trace)
    served: list[_Served] = []
    arrivals: list[float | None] = []
    for index, prompt, run in zip(indices, prefill, tokens, strict=True):
        request = known.get(index)
        prompt = (request.prompt_tokens if request else None) or prompt
        output = (request.output_tokens if request else None) or run - prompt + 1
        if index < 0 or prompt < 1 or output < 1:
            found.skip(NO_LENGTHS)
            continue
        arrivals.append(None if request is None else request.arrival_s)
        served.append(_Served(index, 0.0, prompt, output))
    stated = [arrival for arrival in arrivals if arrival is not None]
    if len(stated) < len(served):
        found.note(AT_ONCE)
        return served
    first = min(stated, default=0.0)
    timed = (one._replace(arrival_s=at - first) for one, at in zip(served, stated, strict=True))
    return sorted(timed, key=lambda one: one.arrival_s)


def _recorded_lengths(trace: Trace) -> tuple[list[int], list[int], list[int]]:
    """By request: its index, its prompt tokens (0 if phases are not known), and those run."""
    indices, place = np.unique(trace.request, return_inverse=True)
    unknown = np.bincount(place[trace.phase < 0], minlength=len(indices))
    tokens = np.zeros(len(indices), np.int64)
    np.maximum.at(tokens, place, trace.position.astype(np.int64) + 1)
    prefill = np.zeros(len(indices), np.int64)
    prompts = trace.phase == 0
    np.maximum.at(prefill, place[prompts], trace.position[prompts].astype(np.int64) + 1)
    prefill[unknown > 0] = 0
    return indices.tolist(), prefill.tolist(), tokens.tolist()


def write_llmservingsim(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """A request a line: lengths, arrival, and token ids where the trace has all of a prompt's."""
    served = _served(trace, found)
    texts = _token_ids(trace) if trace.manifest.token_ids else {}
    for one in served:
        line: dict[str, object] = {
            "input_toks": one.prompt_tokens,
            "output_toks": one.output_tokens,
            "arrival_time_ns": round(one.arrival_s * 1e9),
        }
        ids = texts.get(one.request, [])
        if len(ids) >= one.prompt_tokens:
            line["input_tok_ids"] = ids[: one.prompt_tokens]
            line["output_tok_ids"] = ids[one.prompt_tokens :]
        file.write(json.dumps(line).encode() + b"\n")
    return len(served)


def _token_ids(trace: Trace) -> dict[int, list[int]]:
    """Ids in order of position, of requests that have one for every position."""
    order = np.lexsort((trace.position, trace.request))
    indices, starts = np.unique(trace.request[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {
        int(index): trace.token_id[places].tolist()
        for index, places in zip(indices, parts, strict=True)
        if _whole(trace.position[places]) and (trace.token_id[places] >= 0).all()
    }


def _whole(position: NDArray[np.int32]) -> bool:
    return bool(np.array_equal(position, np.arange(len(position))))


def write_gate(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """A Python module with the gate function that LLMServingSim leaves to the user."""
    load = expert_load(trace).astype(np.float64)
    imbalance = load.max(axis=1) / np.maximum(load.mean(axis=1), 1e-9)
    ordinal = int(np.argsort(imbalance, kind="stable")[len(imbalance) // 2])
    layer = trace.layers[ordinal]
    rows = [row for part in _recorded_rows(trace, layer) for row in part.tolist()][:_GATE_ROWS]
    if not rows:
        raise InputError(f"{trace}: layer {layer} was recorded for no token")
    text = _GATE.format(
        source=trace.model.name.replace("\\", "/").replace('"', "'"),
        layer=layer,
        imbalance=imbalance[ordinal],
        rows=rows,
        experts=trace.experts_per_layer,
        top_k=trace.top_k,
    )
    found.note(f"layer {layer} stands for all layers: the gate is not told which one it routes")
    file.write(text.encode())
    return len(rows)


def _recorded_rows(trace: Trace, layer: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """[T, k] of the tokens for which `layer` was recorded, until there are enough."""
    held = 0
    for part in trace.batches(layer):
        rows = part.experts if part.recorded is None else part.experts[part.recorded]
        yield rows
        held += len(rows)
        if held >= _GATE_ROWS:
            return


def write_blis_data(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The CSV of a trace v2: lengths and arrivals, no prefixes, no deadlines."""
    served = _served(trace, found)
    file.write(BLIS_COLUMNS.encode() + b"\n")
    for number, one in enumerate(served):
        at = round(one.arrival_s * 1e6)
        lengths = f"{one.prompt_tokens},{one.output_tokens},{one.prompt_tokens}"
        row = f"{number},,,,,0,,0,false,{lengths},0,0,0,0,,0,0,{at},{at},0,0,0,ok,,"
        file.write(row.encode() + b"\n")
    return len(served)


def write_blis_header(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The YAML that stands beside the CSV."""
    file.write(b"trace_version: 3\ntime_unit: microseconds\nmode: generated\nwarm_up_requests: 0\n")
    return 4
