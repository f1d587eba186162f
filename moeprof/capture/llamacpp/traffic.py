"""From the routing of a `llama_decode` to rows of the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.capture.failure import FailureLatch
from moeprof.capture.llamacpp.tap import Routed
from moeprof.capture.sink import FAILED, TraceSink
from moeprof.trace import Phase, Request, TokenRows


@dataclass(frozen=True)
class Decoded:
    """One `llama_decode`: consecutive tokens of one request."""

    request: int
    position: int  # of the first token
    prompt_tokens: int  # of the request: tokens before that position are prefill
    step: int  # of the first micro-batch
    token_ids: tuple[int, ...]
    routed: Routed | None = None  # None: only counted, for `drop_reason`
    drop_reason: str = FAILED

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        """Size of what it holds."""
        return 8 * self.tokens + (0 if self.routed is None else self.routed.nbytes)


class DecodedHandler:
    """Writes what was decoded, and requests, to `sink`. Its methods belong to the writer thread."""

    def __init__(self, sink: TraceSink, latch: FailureLatch, *, token_ids: bool) -> None:
        self._sink = sink
        self._latch = latch
        self._token_ids = token_ids

    def handle(self, items: Sequence[Any]) -> None:
        """Items of the queue, in order. Never raises."""
        for item in items:
            if isinstance(item, Request):
                self._sink.put_requests([item])
            elif item.routed is None:
                self._sink.drop(item.tokens, item.drop_reason)
            else:
                self._write(item)

    def finish(self) -> None:
        """Every item was complete when it came."""

    def _write(self, decoded: Decoded) -> None:
        try:
            rows = rows_of(decoded, token_ids=self._token_ids)
        except Exception as error:
            self._latch.trip(error, "interpreting a step")
            self._sink.drop(decoded.tokens, FAILED)
        else:
            self._sink.write(rows)


def rows_of(decoded: Decoded, *, token_ids: bool) -> TokenRows:
    """A row a token; a step is a micro-batch, since each is a pass through the model's weights."""
    routed, tokens = decoded.routed, decoded.tokens
    assert routed is not None
    position = np.arange(decoded.position, decoded.position + tokens, dtype=np.int32)
    forwards = np.repeat(np.arange(len(routed.forwards)), routed.forwards)
    decode = position >= decoded.prompt_tokens
    return TokenRows(
        step=(decoded.step + forwards).astype(np.int64),
        request=np.full(tokens, decoded.request, np.int32),
        position=position,
        phase=np.where(decode, Phase.DECODE, Phase.PREFILL).astype(np.int8),
        experts=routed.experts,
        recorded=None if routed.recorded.all() else routed.recorded,
        weights=routed.weights,
        token_id=np.array(decoded.token_ids, np.int32) if token_ids else None,
        margins=routed.margins,
    )
