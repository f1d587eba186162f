"""What one step of a serving engine computes."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.errors import InputError


@dataclass(frozen=True)
class Batch:
    """One forward pass of one data-parallel group.

    `decode` sequences each compute 1 + `draft_tokens` tokens that attend to `context` tokens, the
    mean over those sequences; `prefill` prompt tokens are computed beside them and attend to
    `prefill_context` tokens in the cache before their own chunk, the mean over those tokens.
    `prefill_sequences` is how many prompts the `prefill` tokens belong to: each attends within its
    own part alone. Raises InputError where a count is negative.
    """

    decode: float  # a mean over steps may be no whole number
    context: float  # tokens
    prefill: int  # tokens
    prefill_context: float  # tokens
    draft_tokens: int = 0
    prefill_sequences: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:  # also false for NaN
                raise InputError(f"{name} of a batch is {value}, it must be at least 0")

    @property
    def tokens(self) -> float:
        """Tokens that go through every layer in this step."""
        return self.decode * (1 + self.draft_tokens) + self.prefill
