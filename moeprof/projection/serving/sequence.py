"""A request inside the engine."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, inf

from moeprof.projection.serving.requests import Request


@dataclass(eq=False, slots=True)
class Sequence:
    """Progress of one request; times in seconds, lengths in tokens.

    Its prompt comes first: `computed` of `prompt` tokens are in the cache, and the last of them
    yields a token. Then it decodes: `start` is the group's count of decode steps when it began and
    `finish` what it will be after its last. `advance` tokens come of a step, on average, where a
    draft model speculates: after j steps it has the whole part of j x advance of them.
    """

    request: Request
    number: int
    arrival_s: float
    advance: float = 1.0
    prompt: int = 0  # grows by what was generated when it is computed anew
    computed: int = 0
    generated: int = 0  # up to the last prompt, which each (re)computation ends with
    order: int = 0  # of entry into the engine
    start: int = 0
    finish: int = 0
    first_token_s: float = inf
    last_token_s: float = inf
    finish_s: float = inf
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.prompt = self.request.input_len
        self.computed = self.request.cached_len

    @property
    def remaining_prompt(self) -> int:
        """Prompt tokens yet to be computed."""
        return self.prompt - self.computed

    @property
    def done(self) -> bool:
        """Whether nothing is left to decode once the prompt is computed."""
        return self.generated >= self.request.output_len

    def produced(self, decode_steps: int) -> int:
        """Tokens generated when the group has made `decode_steps`."""
        more = floor((decode_steps - self.start) * self.advance)
        return min(self.generated + more, self.request.output_len)

    def begin_decode(self, decode_steps: int) -> None:
        """Decode from the group's next decode step on."""
        left = self.request.output_len - self.generated
        self.start, self.finish = decode_steps, decode_steps + ceil(left / self.advance)

    def reset(self, produced: int) -> None:
        """Lose the KV: the prompt and what was generated are to be computed anew."""
        self.generated = produced
        self.prompt = self.request.input_len + produced
        self.computed = self.request.cached_len
        self.preemptions += 1
