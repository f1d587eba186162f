"""What stands between generating and recording: requests, and what each decode logged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.llamacpp.tap import Tap
from moeprof.capture.llamacpp.traffic import Decoded
from moeprof.capture.pipeline import Pipeline
from moeprof.capture.sink import BEHIND
from moeprof.trace import Request

NO_ROOM = "llama.cpp computed more than was expected"


@dataclass
class Listener:
    """Follows the requests through the engine, and offers what was decoded to the pipeline."""

    pipeline: Pipeline
    tap: Tap
    requests: int = 0  # begun
    _prompt_tokens: int = 0
    _arrival_s: float = 0.0

    def begin(self, prompt_tokens: int) -> None:
        """The next request."""
        self.requests += 1
        self._prompt_tokens = prompt_tokens
        self._arrival_s = time.time() - self.pipeline.clock_base
        self._tell(None)

    def finish(self, output_tokens: int) -> None:
        """The request has its last token."""
        self._tell(output_tokens)

    @contextmanager
    def decoding(
        self, tokens: Sequence[int], position: int, outputs: NDArray[np.bool_]
    ) -> Iterator[None]:
        """What the body runs is one `llama_decode` of the request's next tokens."""
        self.tap.begin()
        yield
        log = self.tap.end()
        number, ids = self.requests - 1, tuple(tokens)
        decoded = Decoded(number, position, self._prompt_tokens, ids, outputs, log, NO_ROOM)
        drain = self.pipeline.drain
        if log is None or not drain.offer(decoded, decoded.nbytes):
            reason = NO_ROOM if log is None else BEHIND
            drain.offer(replace(decoded, log=None, drop_reason=reason))

    def _tell(self, output_tokens: int | None) -> None:
        number = self.requests - 1
        (label,) = self.pipeline.recording.labels_of(number, 1)
        self.pipeline.drain.offer(
            Request(number, label, self._arrival_s, self._prompt_tokens, output_tokens)
        )
