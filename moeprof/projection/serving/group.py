"""One data-parallel group of an engine: which sequences run, and what its next step computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.serving.engine_policy import EnginePolicy, Victim
from moeprof.projection.serving.kv_pool import KVPool
from moeprof.projection.serving.sequence import Sequence
from moeprof.projection.serving.step_grid import StepGrid
from moeprof.projection.serving.token_gaps import TokenGaps
from moeprof.projection.step.batch import Batch


@dataclass(frozen=True)
class Plan:
    """The next step: `decode` sequences decode, and `chunks` of prompts are computed.

    `steps` such steps follow each other before anything can change: more than 1 only where
    nothing but decoding goes on.
    """

    decode: int
    chunks: tuple[tuple[Sequence, int], ...]
    steps: int


class Group:
    """Sequences of one group, from waiting to finished, under an engine's rules.

    `advance` tokens come of one decode step of a sequence and `draft_tokens` more than one are
    computed in it.
    """

    def __init__(
        self,
        policy: EnginePolicy,
        grid: StepGrid,
        kv_tokens: int | None,
        advance: float = 1.0,
        draft_tokens: int = 0,
    ) -> None:
        self.policy = policy
        self.pool = KVPool(policy, kv_tokens)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: dict[int, Sequence] = {}  # by order of entry
        self.gaps = TokenGaps()
        self.advance = advance
        self.decode_steps = 0
        self._grid = grid
        self._width = 1 + draft_tokens
        self._draft_tokens = draft_tokens
        self._limit = min(policy.max_sequences, max(policy.max_step_tokens // self._width, 1))
        self._ends: list[tuple[int, int]] = []  # heap of (finish, order of entry)
        self._entered = 0
        self._order: dict[Sequence, int] = {}
        self._held = 0  # sum over decoding of prompt
        self._starts = 0  # and of start
        self._blocked = False  # the head of the queue did not fit, and nobody has left since

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self.waiting or self.prefilling or self.decoding)

    def kv_tokens(self) -> float:
        """Tokens in the KV cache now."""
        prompts = sum(sequence.computed for sequence in self.prefilling)
        return prompts + self._total_context()

    def plan(self) -> Plan:
        """Decide the next step; sends sequences away and lets others in."""
        away = bool(self.policy.mixed and self.decoding and self._make_room())
        chunks = self._chunks(admit=not away)
        if not self.policy.mixed:
            if chunks:
                return Plan(0, chunks, 1)
            away = bool(self.decoding and self._make_room())
        # Whoever was sent away may come back in the very next step.
        alone = not chunks and not away and bool(self.decoding)
        return Plan(len(self.decoding), chunks, self._run_length() if alone else 1)

    def seconds(self, plan: Plan, steps: int) -> NDArray[np.float64]:
        """Seconds of the next `steps` steps of `plan`, [step]; zeros for a group without work."""
        if not plan.chunks and not plan.decode:
            return np.zeros(steps)
        total = self._total_context()
        if not plan.chunks:
            contexts = total / plan.decode + np.arange(steps, dtype=np.float64) * self.advance
            return self._grid.decode_seconds(plan.decode, contexts)
        prefill = sum(tokens for _, tokens in plan.chunks)
        before = sum(tokens * sequence.computed for sequence, tokens in plan.chunks) / prefill
        context = total / plan.decode if plan.decode else 0.0
        batch = Batch(plan.decode, context, prefill, before, self._draft_tokens, len(plan.chunks))
        return np.array([self._grid.seconds(batch)])

    def commit(self, plan: Plan, ends_s: NDArray[np.float64]) -> list[Sequence]:
        """Do steps of `plan` that end at `ends_s` [step]; the sequences that finished."""
        finished: list[Sequence] = []
        end_s = float(ends_s[-1])
        if plan.decode:
            self.gaps.decoded(plan.decode, ends_s)
            self.decode_steps += len(ends_s)
            while self._ends and self._ends[0][0] <= self.decode_steps:
                finished.append(self._leave(heappop(self._ends)[1]))
        for sequence, tokens in plan.chunks:
            sequence.computed += tokens
            if sequence.remaining_prompt:
                continue
            self.prefilling.remove(sequence)
            sequence.generated += 1
            self.gaps.prompt_computed(sequence, end_s)
            if sequence.done:
                self._order.pop(sequence)
                finished.append(sequence)
            else:
                self._join(sequence)
        if finished:
            self._blocked = False
        for sequence in finished:
            sequence.finish_s = end_s
        return finished

    def _chunks(self, admit: bool) -> tuple[tuple[Sequence, int], ...]:
        """Prompt tokens of the next step: those begun first, then what waits."""
        budget = self.policy.max_step_tokens
        if self.policy.mixed:
            budget -= len(self.decoding) * self._width
        chunks = []
        for sequence in self.prefilling:
            tokens = min(sequence.remaining_prompt, budget)
            if tokens:
                chunks.append((sequence, tokens))
            budget -= tokens
        while admit and budget > 0 and (entered := self._enter(budget)):
            tokens = min(entered.remaining_prompt, budget)
            chunks.append((entered, tokens))
            budget -= tokens
        return tuple(chunks)

    def _enter(self, budget: int) -> Sequence | None:
        """Let in the head of the queue if places, budget and KV allow."""
        if not self.waiting or self._blocked:
            return None
        running = len(self.prefilling) + len(self.decoding)
        head = self.waiting[0]
        if running >= self._limit:
            return None
        if not self.policy.chunked and running and head.remaining_prompt > budget:
            return None
        if not self.pool.admits(head, self.prefilling, self.decoding.values(), self.decode_steps):
            self._blocked = True
            return None
        self.waiting.popleft()
        self.prefilling.append(head)
        self._order[head] = self._entered
        self._entered += 1
        return head

    def _make_room(self) -> bool:
        """Send sequences away until the next decode step fits; whether any went."""
        away = False
        running = len(self.decoding) + len(self.prefilling)
        while running > 1 and not self.pool.fits(
            self.prefilling, self.decoding.values(), self.decode_steps + 1
        ):
            self._send_away()
            away, running = True, running - 1
        if away:
            self._blocked = False
            self.pool.retracted(self.decoding.values(), self.decode_steps)
        return away

    def _send_away(self) -> None:
        if self.policy.victim is Victim.SHORTEST:
            steps = self.decode_steps
            victim = min(
                self.decoding.values(),
                key=lambda s: (s.produced(steps), -s.request.input_len, -self._order[s]),
            )
            self._evict(victim)
            self.waiting.append(victim)
            return
        victim = max([*self.prefilling, *self.decoding.values()], key=self._order.__getitem__)
        self._evict(victim)
        self.waiting.appendleft(victim)

    def _evict(self, victim: Sequence) -> None:
        if victim in self.prefilling:
            self.prefilling.remove(victim)
            self._order.pop(victim)
            victim.reset(victim.generated)
            return
        produced = victim.produced(self.decode_steps)
        self.gaps.left(victim)
        order = self._order[victim]
        self._ends.remove((victim.finish, order))
        self._ends.sort()  # a sorted list is a heap
        self._leave(order)
        victim.reset(produced)

    def _run_length(self) -> int:
        """Decode steps until the first sequence ends or the KV is full."""
        most = self._ends[0][0] - self.decode_steps
        decoding = self.decoding.values()
        return max(1, self.pool.steps_that_fit(self.prefilling, decoding, self.decode_steps, most))

    def _join(self, sequence: Sequence) -> None:
        sequence.begin_decode(self.decode_steps)
        order = self._order[sequence]
        self.decoding[order] = sequence
        heappush(self._ends, (sequence.finish, order))
        self._held += sequence.prompt
        self._starts += sequence.start

    def _leave(self, order: int) -> Sequence:
        sequence = self.decoding.pop(order)
        self._order.pop(sequence)
        self._held -= sequence.prompt
        self._starts -= sequence.start
        return sequence

    def _total_context(self) -> float:
        """Tokens in the KV of all decoding sequences."""
        return self._held + self.advance * (len(self.decoding) * self.decode_steps - self._starts)
