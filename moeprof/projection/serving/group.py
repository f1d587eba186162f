"""One data-parallel group of an engine: which sequences run, and what its next step computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.projection.serving.decoding import Decoding
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

    `advance` tokens come of one decode step of a sequence, for which 1 + `draft_tokens` are
    computed.
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
        self.prefilling: list[Sequence] = []  # in order of entry
        self.decoding = Decoding(advance)
        self.gaps = TokenGaps()
        self._grid = grid
        self._draft_tokens = draft_tokens
        self._width = 1 + draft_tokens
        self._limit = min(policy.max_sequences, max(policy.max_step_tokens // self._width, 1))
        self._entered = 0
        self._blocked = False  # the head of the queue did not fit, and nobody has left since

    @property
    def advance(self) -> float:
        """Tokens that come of one decode step of a sequence."""
        return self.decoding.advance

    @property
    def running(self) -> int:
        """Sequences in the engine."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self.waiting or self.running)

    def kv_tokens(self) -> float:
        """Tokens in the KV cache now."""
        return sum(sequence.computed for sequence in self.prefilling) + self.decoding.tokens()

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
        context = self.decoding.tokens() / plan.decode if plan.decode else 0.0
        if not plan.chunks:
            contexts = context + np.arange(steps, dtype=np.float64) * self.advance
            return self._grid.decode_seconds(plan.decode, contexts)
        prefill = sum(tokens for _, tokens in plan.chunks)
        before = sum(tokens * sequence.computed for sequence, tokens in plan.chunks) / prefill
        batch = Batch(plan.decode, context, prefill, before, self._draft_tokens, len(plan.chunks))
        return np.array([self._grid.seconds(batch)])

    def commit(self, plan: Plan, ends_s: NDArray[np.float64]) -> list[Sequence]:
        """Do steps of `plan` that end at `ends_s` [step]; the sequences that finished."""
        finished: list[Sequence] = []
        end_s = float(ends_s[-1])
        if plan.decode:
            self.gaps.decoded(plan.decode, ends_s)
            finished += self.decoding.step(len(ends_s))
        for sequence, tokens in plan.chunks:
            sequence.computed += tokens
            if sequence.remaining_prompt:
                continue
            self.prefilling.remove(sequence)
            sequence.generated += 1
            self.gaps.prompt_computed(sequence, end_s)
            if sequence.done:
                finished.append(sequence)
            else:
                self.decoding.join(sequence)
        for sequence in finished:
            sequence.finish_s = end_s
            self._blocked = False
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
        if not self.waiting or self._blocked or self.running >= self._limit:
            return None
        head = self.waiting[0]
        if not self.policy.chunked and self.running and head.remaining_prompt > budget:
            return None
        if not self.pool.admits(head, self.prefilling, self.decoding):
            self._blocked = True
            return None
        self.prefilling.append(self.waiting.popleft())
        head.order = self._entered
        self._entered += 1
        return head

    def _make_room(self) -> bool:
        """Send sequences away until the next decode step fits; whether any went."""
        away = False
        while self.running > 1 and not self.pool.fits(self.prefilling, self.decoding, 1):
            self._send_away()
            away = True
        if away:
            self._blocked = False
            self.pool.retracted(self.decoding)
        return away

    def _send_away(self) -> None:
        if self.policy.victim is Victim.NEWEST:
            victim = max([*self.prefilling, *self.decoding], key=lambda s: s.order)
            self.waiting.appendleft(victim)
        else:
            steps = self.decoding.steps
            victim = min(
                self.decoding, key=lambda s: (s.produced(steps), -s.request.input_len, -s.order)
            )
            self.waiting.append(victim)
        if victim in self.prefilling:
            self.prefilling.remove(victim)
            victim.reset(victim.generated)
        else:
            self.gaps.left(victim)
            self.decoding.remove(victim)
            victim.reset(victim.produced(self.decoding.steps))

    def _run_length(self) -> int:
        """Decode steps until the first sequence ends or the KV is full."""
        most = self.decoding.steps_to_first_end
        return max(1, self.pool.steps_that_fit(self.prefilling, self.decoding, most))
