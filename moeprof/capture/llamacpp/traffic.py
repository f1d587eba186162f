"""From the routing of a `llama_decode` to rows of the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.failure import FailureLatch
from moeprof.capture.llamacpp.reading import LogReader, Routed
from moeprof.capture.sink import FAILED, TraceSink
from moeprof.trace import Phase, Request, TokenRows


@dataclass(frozen=True)
class Decoded:
    """One `llama_decode`: consecutive tokens of one request."""

    request: int
    position: int  # of the first token
    prompt_tokens: int  # of the request: tokens before that position are prefill
    token_ids: tuple[int, ...]
    outputs: NDArray[np.bool_]  # [T] whose logits were asked for
    log: NDArray[np.uint8] | None = None  # None: only counted, for `drop_reason`
    drop_reason: str = FAILED

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        """Size of what it holds."""
        return 9 * self.tokens + (0 if self.log is None else self.log.nbytes)


class DecodedHandler:
    """Writes what was decoded, and requests, to `sink`. Its methods belong to the writer thread."""

    def __init__(
        self, sink: TraceSink, latch: FailureLatch, reader: LogReader, *, token_ids: bool
    ) -> None:
        self._sink = sink
        self._latch = latch
        self._reader = reader
        self._token_ids = token_ids
        self._step = 0

    def handle(self, items: Sequence[Any]) -> None:
        """Items of the queue, in order. Never raises."""
        for item in items:
            if isinstance(item, Request):
                self._sink.put_requests([item])
            elif item.log is None or self._latch.tripped:
                self._step += 1
                self._sink.drop(item.tokens, item.drop_reason)
            else:
                self._write(item, item.log)

    def finish(self) -> None:
        """Every item was complete when it came."""

    def _write(self, decoded: Decoded, log: NDArray[np.uint8]) -> None:
        try:
            routed = self._reader.read(log, decoded.tokens, decoded.outputs)
            rows = rows_of(decoded, routed, self._step, token_ids=self._token_ids)
            self._step += len(routed.forwards)
        except Exception as error:
            self._latch.trip(error, "reading llama.cpp's routers")
            self._sink.drop(decoded.tokens, FAILED)
        else:
            self._sink.write(rows)


def rows_of(decoded: Decoded, routed: Routed, step: int, *, token_ids: bool) -> TokenRows:
    """A row a token; a step is a micro-batch, since each is a pass through the model's weights."""
    tokens = decoded.tokens
    position = np.arange(decoded.position, decoded.position + tokens, dtype=np.int32)
    forwards = np.repeat(np.arange(len(routed.forwards)), routed.forwards)
    decode = position >= decoded.prompt_tokens
    return TokenRows(
        step=(step + forwards).astype(np.int64),
        request=np.full(tokens, decoded.request, np.int32),
        position=position,
        phase=np.where(decode, Phase.DECODE, Phase.PREFILL).astype(np.int8),
        experts=routed.experts,
        recorded=None if routed.recorded.all() else routed.recorded,
        weights=routed.weights,
        token_id=np.array(decoded.token_ids, np.int32) if token_ids else None,
        margins=routed.margins,
    )
