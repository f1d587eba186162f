"""KV of one data-parallel group, in blocks: who may enter, and how long all of it fits."""

from __future__ import annotations

from collections.abc import Collection
from math import ceil

from moeprof.projection.serving.decoding import Decoding
from moeprof.projection.serving.engine_policy import Admission, EnginePolicy
from moeprof.projection.serving.sequence import Sequence

# SGLang's guess of how much of their output running requests still have to come (environ.py:
# SGLANG_INIT_NEW_TOKEN_RATIO, _MIN_NEW_TOKEN_RATIO_FACTOR, _NEW_TOKEN_RATIO_DECAY_STEPS,
# SGLANG_RETRACT_DECODE_STEPS, SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION).
_FIRST_RATIO, _LEAST_RATIO, _DECAY_STEPS = 0.7, 0.7 * 0.14, 600
_RETRACT_STEPS, _OUTPUT_CLIP = 20, 4096


class KVPool:
    """`kv_tokens` of capacity in whole blocks; None for no limit.

    A decoding sequence holds its prompt and a token for every step it has made; one whose prompt
    is being computed holds all of its prompt from the start.
    """

    def __init__(self, policy: EnginePolicy, kv_tokens: int | None) -> None:
        self._policy = policy
        self._block = policy.block_tokens
        self._capacity = None if kv_tokens is None else kv_tokens // self._block  # blocks
        self._ratio, self._ratio_since = _FIRST_RATIO, 0

    def holds(self, request_tokens: int) -> bool:
        """Whether a request of that many tokens ever fits."""
        return self._capacity is None or self._blocks(request_tokens) <= self._capacity

    def share(self, tokens: float) -> float | None:
        """`tokens` as a share of the capacity; None for no limit."""
        return None if self._capacity is None else tokens / (self._capacity * self._block)

    def fits(self, prefilling: Collection[Sequence], decoding: Decoding, ahead: int) -> bool:
        """Whether all of them fit after `ahead` more decode steps."""
        return self._holds_all(prefilling, decoding, ahead, 0)

    def steps_that_fit(
        self, prefilling: Collection[Sequence], decoding: Decoding, most: int
    ) -> int:
        """How many more decode steps fit, up to `most`."""
        if self.fits(prefilling, decoding, most):
            return most
        low, high = 0, most  # `low` more fit, `high` more do not
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(prefilling, decoding, middle):
                low = middle
            else:
                high = middle
        return low

    def admits(self, new: Sequence, prefilling: Collection[Sequence], decoding: Decoding) -> bool:
        """Whether `new` may enter beside those that run, by the engine's rule."""
        if self._capacity is None or not (prefilling or decoding):
            return True
        if self._policy.admission is Admission.WHOLE:
            running = (*prefilling, *decoding, new)
            return sum(self._blocks(_whole(s)) for s in running) <= self._capacity
        reserve = 0.0
        if self._policy.admission is Admission.ESTIMATE:
            steps = decoding.steps
            reserve = sum(_to_come(s, steps) for s in decoding) * self._ratio_at(steps)
            reserve += sum(_to_come(s, s.start) for s in (*prefilling, new))
        return self._holds_all([*prefilling, new], decoding, 0, ceil(reserve / self._block))

    def retracted(self, decoding: Decoding) -> None:
        """After sequences were sent away: guess anew from those that stay."""
        outputs = sum(s.request.output_len for s in decoding)
        produced = sum(s.produced(decoding.steps) for s in decoding)
        guess = (produced + _RETRACT_STEPS * len(decoding)) / max(outputs, 1)
        self._ratio, self._ratio_since = min(1.0, guess), decoding.steps

    def _holds_all(
        self, prefilling: Collection[Sequence], decoding: Decoding, ahead: int, reserve: int
    ) -> bool:
        """Whether all of them fit after `ahead` steps, `reserve` blocks kept free."""
        if self._capacity is None:
            return True
        room = self._capacity - reserve - sum(self._blocks(s.prompt) for s in prefilling)
        most = decoding.tokens(ahead) // self._block + len(decoding)  # none is partial by a block
        return most <= room or decoding.blocks(self._block, ahead) <= room

    def _ratio_at(self, steps: int) -> float:
        decay = (_FIRST_RATIO - _LEAST_RATIO) / _DECAY_STEPS
        return max(self._ratio - decay * (steps - self._ratio_since), _LEAST_RATIO)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block)


def _whole(sequence: Sequence) -> int:
    return sequence.request.input_len + sequence.request.output_len


def _to_come(sequence: Sequence, steps: int) -> int:
    left = sequence.request.output_len - sequence.produced(steps)
    return min(left, _OUTPUT_CLIP)
