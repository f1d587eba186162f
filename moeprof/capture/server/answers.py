"""From an answer to rows of a trace: checked against the model, or one line that says what is off.

Prompt tokens that the server took from its prefix cache were computed for an earlier request. An
answer holds their routing all the same. They are no traffic of this one, so they are left out and
counted where the server says how many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.server.asking import Asking, Engine
from moeprof.errors import InputError, MoeprofError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows
from moeprof.trace.formats.assemble import take
from moeprof.trace.formats.block import Block, Findings, Options
from moeprof.trace.formats.cleaning import cleaned
from moeprof.trace.formats.reading import MALFORMED
from moeprof.trace.formats.responses import request_block
from moeprof.trace.formats.routed import Routed
from moeprof.trace.schema import expert_dtype

_CERTAIN_TOKENS = 16  # of a top-1 layer that is all zeros, which a few tokens may be by chance


class AnswerError(MoeprofError):
    """An answer cannot be recorded. `hopeless`: no other answer of this server can be either."""

    def __init__(self, kind: str, detail: str = "", *, hopeless: bool = False) -> None:
        self.kind = kind
        self.hopeless = hopeless
        super().__init__(f"{kind}: {detail}" if detail else kind)


@dataclass(frozen=True)
class Answered:
    """One sequence of an answer, ready to be written. Its steps count from 0."""

    rows: TokenRows
    prompt: int | None
    output: int | None
    cached: int | None  # tokens left out, or kept, that the prefix cache had; None: not said
    unasked: int  # prompt tokens before the first that was asked for
    repeated: int  # prompt tokens that the first choice has


def answered(
    document: Any,
    engine: Engine,
    asking: Asking,
    model: MoEModel,
    found: Findings,
    *,
    keep_cached: bool = False,
) -> list[Answered]:
    """Every sequence of an answer. Raises AnswerError."""
    try:
        sequences = engine.sequences(document, asking, model)
    except InputError as error:
        raise AnswerError("the answer does not fit the model", str(error), hopeless=True) from None
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise AnswerError("malformed routing", reason) from None
    if not sequences or sequences[0] is None:
        raise AnswerError("no routing", engine.no_routing, hopeless=True)
    if len(sequences) > asking.choices:
        raise AnswerError(f"{len(sequences)} sequences where {asking.choices} were asked for")
    return [
        _checked(routed, engine, asking, model, found, keep_cached)
        for routed in sequences
        if routed is not None
    ]


def _checked(
    routed: Routed,
    engine: Engine,
    asking: Asking,
    model: MoEModel,
    found: Findings,
    keep_cached: bool,
) -> Answered:
    _check_shape(routed, model)
    if routed.experts.shape[1] == model.layers:  # dense ones too, which hold nothing
        routed = replace(routed, experts=routed.experts[:, list(model.moe_layers)])
    options = Options(model.layers, model.experts, model.top_k, model.moe_layers)
    block = request_block(routed, 0, 0, options, found)
    _check_ids(block.experts, engine, model)
    if asking.token_ids and routed.token_id is None:
        raise AnswerError("no token ids", "the server does not return them: leave token_ids out")
    cached = None if routed.cached is None else _in_front(block, routed.cached)
    nothing = take(block, slice(0, 0))
    clean = next(cleaned(iter([block]), found, keep_warmup=True), nothing)
    rows = _rows(clean, model, asking.token_ids)
    if cached and not keep_cached:
        kept = rows.position >= (routed.cached or 0)
        rows = _kept(rows, kept)
    return Answered(
        rows=rows,
        prompt=routed.prompt,
        output=routed.output,
        cached=cached,
        unasked=0 if routed.repeated else routed.start,
        repeated=routed.repeated,
    )


def _check_shape(routed: Routed, model: MoEModel) -> None:
    _, layers, top_k = routed.experts.shape
    remedy = "is --model the model that is served?"
    if layers not in (model.layers, len(model.moe_layers)):
        raise AnswerError(
            "the answer does not fit the model",
            f"it has {layers} layers, {model.name} {model.layers}, of which "
            f"{len(model.moe_layers)} are MoE layers: {remedy}",
            hopeless=True,
        )
    if top_k != model.top_k:
        raise AnswerError(
            "the answer does not fit the model",
            f"it has {top_k} experts a token, {model.name} top-{model.top_k}: {remedy}",
            hopeless=True,
        )


def _check_ids(ids: NDArray[np.integer[Any]], engine: Engine, model: MoEModel) -> None:
    """AnswerError on ids [T, MoE layers, k] that no router chose."""
    if not ids.size:
        return
    highest = int(ids.max())
    if highest >= model.experts:
        raise AnswerError(
            "ids out of range",
            f"expert {highest:,} of {model.experts} in {model.name}: is --model what is served?",
        )
    silent = (ids == 0).all(axis=(0, 2))
    if silent.any() and (model.top_k > 1 or len(ids) >= _CERTAIN_TOKENS):
        layer = model.moe_layers[int(silent.argmax())]
        raise AnswerError(
            "a MoE layer without routing",
            f"all ids of layer {layer} are 0, and of {int(silent.sum())} of "
            f"{len(silent)} MoE layers: {engine.silent_layer}",
            hopeless=True,
        )


def _in_front(block: Block, tokens: int) -> int:
    """How many rows of `block` stand before position `tokens`."""
    return int(np.count_nonzero(block.position < tokens))


def _rows(block: Block, model: MoEModel, token_ids: bool) -> TokenRows:
    ids = block.experts
    recorded = None
    if ids.dtype.kind == "i" and (missing := ids[:, :, 0] < 0).any():
        ids, recorded = np.maximum(ids, 0), ~missing
    return TokenRows(
        step=block.step,
        request=block.request,
        position=block.position,
        phase=block.phase,
        experts=ids.astype(expert_dtype(model.experts), copy=False),
        recorded=recorded,
        token_id=block.token_id if token_ids else None,
    )


def _kept(rows: TokenRows, kept: NDArray[np.bool_]) -> TokenRows:
    given = ((f.name, getattr(rows, f.name)) for f in fields(rows))
    return replace(rows, **{name: array[kept] for name, array in given if array is not None})


def numbered(answers: Sequence[Answered], first_request: int, first_step: int) -> list[TokenRows]:
    """The rows of one answer in their place in the trace: requests and steps go on."""
    placed = []
    for number, answer in enumerate(answers):
        rows = answer.rows
        if len(rows):
            rows = replace(
                rows,
                request=np.full(len(rows), first_request + number, np.int32),
                step=rows.step - rows.step[0] + first_step,
            )
            first_step = int(rows.step[-1]) + 1
        placed.append(rows)
    return placed
