"""What the writer thread does with the steps of a vLLM worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.failure import FailureLatch
from moeprof.capture.layout import UNWRITTEN
from moeprof.capture.sink import FAILED, TraceSink
from moeprof.capture.vllm.recent import RecentRows
from moeprof.capture.vllm.steps import Ended, Lost, Started, Step
from moeprof.trace import Phase, Request, TokenRows

NO_ROUTER = "no router gave one row a token"


class StepHandler:
    """Turns steps into rows for `sink`. Its methods belong to the writer thread, and never raise.

    `shared` says that other ranks have the rows that this one lacks. `speculative`: drafts that
    are rejected are computed like any token, so that what was generated cannot be counted here.
    """

    def __init__(
        self,
        sink: TraceSink,
        latch: FailureLatch,
        recent: RecentRows,
        *,
        token_ids: bool = False,
        shared: bool = False,
        speculative: bool = False,
    ) -> None:
        self._sink = sink
        self._latch = latch
        self._recent = recent
        self._token_ids = token_ids
        self._shared = shared
        self._speculative = speculative
        self._requests: dict[int, Request] = {}  # that have not ended
        self._computed: dict[int, int] = {}  # highest position plus one

    def handle(self, items: Sequence[Any]) -> None:
        """Items of the queue, in order."""
        for run in _runs(items):
            try:
                self._handle(run)
            except Exception as error:
                self._latch.trip(error, "interpreting a step")
                self._sink.drop(sum(i.total for i in run if isinstance(i, Step)), FAILED)

    def finish(self) -> None:
        """Write what is known of unfinished requests."""
        self.handle([Ended(number) for number in list(self._requests)])

    def _handle(self, run: list[Any]) -> None:
        item = run[0]
        if isinstance(item, Step):
            self._handle_steps(run)
        elif isinstance(item, Started):
            self._start(item)
        elif isinstance(item, Ended):
            self._end(item.request)
        elif isinstance(item, Lost):
            self._sink.drop(item.tokens, item.reason)

    def _handle_steps(self, steps: list[Step]) -> None:
        total = sum(step.total for step in steps)
        if self._latch.tripped:
            self._sink.drop(total, FAILED)
            return
        rows = self._rows(steps)
        if not self._shared:
            self._sink.drop(total - len(rows), NO_ROUTER)
        if len(rows):
            self._note_positions(rows)
            self._sink.write(rows)
            self._recent.add(rows)

    def _rows(self, steps: list[Step]) -> TokenRows:
        """The rows that some router routed, of steps that follow each other."""
        parts = [step.routing for step in steps]
        experts = np.concatenate([part["experts"] for part in parts])
        position = np.concatenate([part["position"][:, 0] for part in parts])
        totals = [step.total for step in steps]
        tokens = np.concatenate([step.tokens for step in steps])
        request = np.repeat(np.concatenate([step.requests for step in steps]), tokens)
        prompt = np.repeat(np.concatenate([step.prompts for step in steps]), tokens)
        recorded = self._recorded(experts, totals)
        kept = recorded.any(axis=1)
        phase = np.where(position >= prompt, Phase.DECODE, Phase.PREFILL).astype(np.int8)
        token_id = np.concatenate([p.token_ids for p in parts])[kept] if self._token_ids else None
        return TokenRows(
            step=np.repeat(np.array([s.number for s in steps], np.int64), totals)[kept],
            request=request[kept],
            position=position[kept],
            phase=phase[kept],
            experts=experts[kept].view(np.uint16),
            recorded=None if recorded[kept].all() else recorded[kept],
            token_id=token_id,
        )

    def _recorded(self, experts: NDArray[np.int16], totals: list[int]) -> NDArray[np.bool_]:
        """[T, L] A layer counts if its router gave every row of a step, or of this rank's part."""
        written = np.asarray(experts[:, :, 0] != UNWRITTEN)
        others = ~written.any(axis=1, keepdims=True) if self._shared else np.False_
        starts = np.cumsum([0, *totals[:-1]])
        whole = np.logical_and.reduceat(written | others, starts, axis=0)
        return np.asarray(np.repeat(whole, totals, axis=0) & written)

    def _note_positions(self, rows: TokenRows) -> None:
        """Positions need not rise: what was preempted is computed again."""
        first = np.flatnonzero(np.diff(rows.request, prepend=-1))
        highest = np.maximum.reduceat(rows.position, first)
        for number, position in zip(rows.request[first], highest, strict=True):
            known = self._computed.get(int(number), 0)
            self._computed[int(number)] = max(known, int(position) + 1)

    def _start(self, started: Started) -> None:
        request = Request(
            index=started.request,
            arrival_s=started.arrival_s,
            prompt_tokens=started.prompt_tokens,
            name=started.name,
        )
        self._requests[started.request] = request
        self._sink.put_requests([request])

    def _end(self, number: int) -> None:
        request = self._requests.pop(number, None)
        computed = self._computed.pop(number, 0)
        if request is None or request.prompt_tokens is None or self._speculative:
            return
        # The last token of a request is generated and never routed.
        generated = max(0, computed - request.prompt_tokens + 1)
        self._sink.put_requests([replace(request, output_tokens=generated)])


def _runs(items: Sequence[Any]) -> Iterator[list[Any]]:
    """`items` one by one, but steps that follow each other together: small ones cost as many."""
    run: list[Any] = []
    for item in items:
        if run and not isinstance(item, Step):
            yield run
            run = []
        if isinstance(item, Step):
            run.append(item)
        else:
            yield [item]
    if run:
        yield run
