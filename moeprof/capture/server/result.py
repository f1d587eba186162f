"""What became of a recording through a server's routing API."""

from __future__ import annotations

from dataclasses import dataclass, field

from moeprof.result import Result


@dataclass(frozen=True)
class ServerCapture(Result):
    """What a server's answers recorded, in tokens."""

    path: str
    engine: str
    engine_version: str
    model: str
    prompts: int
    requests: int  # sequences that came back, `choices` of each prompt that was answered
    failed: dict[str, int]  # prompts without a usable answer, by reason
    tokens: int  # recorded; the last token a request generates is never routed
    dropped: int  # in answers, and not recorded
    prefill_tokens: int
    decode_tokens: int
    cached_tokens: int | None = None  # prompt tokens from the prefix cache; None: it did not say
    cached_kept: bool = False  # whether these are among the recorded
    unasked_tokens: int = 0  # prompt tokens before `prompt_start`
    repeated_tokens: int = 0  # prompt tokens that further choices repeat, recorded once
    sampled_out: int = 0
    rotated: int = 0
    share_error: float | None = None
    notes: list[str] = field(default_factory=list)
    problem: str | None = None  # the first failure, or what ended the recording early
