"""Which request each row of a forward belongs to.

A row of a batch whose cache is empty, or that brings no cache, starts a request; later forwards
with the same cache object and as many rows continue it. Each call of `generate` starts requests
of its own, also on a cache that is filled: their positions then go on where the cache ends, as
after a prefix-cache hit of a serving engine. Under `generate` the prompt length is that of its
input; in a loop of bare forwards the first forward on a cache is the prompt.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from moeprof.capture.routing import HostCopy, copy_to_host
from moeprof.capture.transformers.boundaries import wrap_method
from moeprof.capture.transformers.requests.forward import Forward, cache_columns, cache_in_output
from moeprof.capture.transformers.traffic.beams import Reorder
from moeprof.capture.transformers.traffic.step import Batch, BatchEnd, Beams

Labeller = Callable[[int, int], tuple[str | None, ...]]  # first request, rows -> label a row


@dataclass
class GenerateCall:
    """One call of `generate` under way."""

    prompt_columns: int | None  # width of its input; None: not known before the first forward
    returned_columns: int | None  # columns that its result holds before the new tokens
    stop_ids: tuple[int, ...]
    beams: int = 1
    returned: int = 1  # sequences of each prompt that a beam search returns
    arrival: float = field(default_factory=time.time)
    stream: Stream | None = None
    unwatch: Callable[[], None] = lambda: None


@dataclass
class Stream:
    """A batch, the cache it fills, and how many columns it has filled."""

    batch: Batch
    cache: Any = None  # a weak reference outside of generate
    columns: int = 0
    in_generate: bool = False

    def holds(self, cache: Any) -> bool:
        """Whether `cache` is this stream's."""
        own = self.cache() if isinstance(self.cache, weakref.ref) else self.cache
        return own is cache


class RequestTracker:
    """Gives every forward its batch of requests. Used from the thread that runs the model."""

    def __init__(self, labels: Labeller, end: Callable[[BatchEnd | Reorder], object]) -> None:
        self._labels = labels
        self._end = end
        self._next_request = 0
        self._calls: list[GenerateCall] = []
        self._streams: dict[int, Stream] = {}  # of bare forwards, by id of the cache

    def place(self, forward: Forward) -> tuple[Stream, int]:
        """The stream that `forward` continues or starts, and the columns before it."""
        call = self._calls[-1] if self._calls else None
        if call is not None and (call.stream is None or call.stream.holds(forward.cache)):
            return self._place_in_call(call, forward)
        stream = self._streams.get(id(forward.cache))
        known = stream is not None and stream.holds(forward.cache)
        past = self._past(forward.cache, stream if known else None)
        if stream is None or not known or past == 0 or stream.batch.rows != forward.rows:
            stream = self._start(forward, past + forward.columns, time.time())
            self._remember(stream, forward.cache)
        return stream, past

    def advance(self, stream: Stream, past: int, forward: Forward, output: Any) -> None:
        """The forward is done: its cache, perhaps only now made, stands for the stream."""
        stream.columns = past + forward.columns
        cache = forward.cache if forward.cache is not None else cache_in_output(output)
        call = self._calls[-1] if self._calls else None
        if call is not None and call.stream is stream:
            stream.cache = cache
        elif cache is None:
            self._end(BatchEnd(stream.batch))
        elif forward.cache is None:
            self._remember(stream, cache)

    def enter(self, call: GenerateCall) -> None:
        """A `generate` begins."""
        self._calls.append(call)

    def leave(
        self, call: GenerateCall, new_tokens: int | None, sequences: HostCopy | None = None
    ) -> None:
        """A `generate` ended; a row generated at most `new_tokens`, a beam search `sequences`."""
        self._calls.remove(call)
        if call.stream is not None:
            call.unwatch()
            self._end(BatchEnd(call.stream.batch, new_tokens, sequences))

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._next_request

    def new_request(self, place: int | None) -> tuple[int, str | None]:
        """Index and label of a request followed elsewhere, the `place`-th to arrive if known."""
        index = self._next_request
        self._next_request += 1
        return index, self._labels(index if place is None else place, 1)[0]

    def _place_in_call(self, call: GenerateCall, forward: Forward) -> tuple[Stream, int]:
        stream = call.stream
        past = self._past(forward.cache, stream)
        if stream is not None and stream.batch.rows == forward.rows:
            return stream, past
        if stream is not None:
            self._end(BatchEnd(stream.batch))
        width = _prompt_width(call.prompt_columns, past, forward.columns)
        call.stream = self._start(forward, width, call.arrival, call)
        call.stream.cache = forward.cache
        call.stream.in_generate = True
        if call.stream.batch.beams is not None:
            call.unwatch()
            call.unwatch = self._watch_beams(call.stream.batch, forward.cache)
        return call.stream, past

    def _watch_beams(self, batch: Batch, cache: Any) -> Callable[[], None]:
        """Follow which rows go on as which: the search reorders its cache by it."""

        def around(reorder: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            with contextlib.suppress(Exception):
                self._end(Reorder(batch, copy_to_host([*args, *kwargs.values()][0])))
            return reorder(*args, **kwargs)

        return wrap_method(cache, "reorder_cache", around)

    def _start(
        self, forward: Forward, width: int, arrival: float, call: GenerateCall | None = None
    ) -> Stream:
        first, rows = self._next_request, forward.rows
        beams, stop_ids = None, () if call is None else call.stop_ids
        if call is not None and call.beams > 1:
            beams, stop_ids = Beams(call.beams, call.returned, stop_ids), ()
        batch = Batch(first, rows, width, arrival, (), stop_ids, beams)
        self._next_request += batch.requests
        return Stream(replace(batch, labels=self._labels(first, batch.requests)))

    def _remember(self, stream: Stream, cache: Any) -> None:
        """Find `stream` by its cache from now on; forget streams whose caches are gone."""
        for key, old in list(self._streams.items()):
            if old.holds(None) or key == id(cache):
                del self._streams[key]
                self._end(BatchEnd(old.batch))
        if cache is not None:
            stream.cache = weakref.ref(cache)
            self._streams[id(cache)] = stream

    @staticmethod
    def _past(cache: Any, stream: Stream | None) -> int:
        if cache is None:
            return 0
        length = cache_columns(cache)
        if length is None:
            return stream.columns if stream is not None else 0
        return length


def _prompt_width(prompt_columns: int | None, past: int, columns: int) -> int:
    """Columns of the prompt, from the width of generate's input and its first forward.

    The input holds the whole sequence, cached columns included, or, when the first forward takes
    all of it on a filled cache, only what is new.
    """
    if prompt_columns is None or (past and columns == prompt_columns):
        return past + columns
    return prompt_columns
