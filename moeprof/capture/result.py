"""What a capture of prompts checks before it begins and hands back, whatever the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moeprof.capture.recording import Recording
from moeprof.errors import InputError, MoeprofError
from moeprof.result import Result
from moeprof.trace.schema import MANIFEST


@dataclass(frozen=True)
class CaptureResult(Result):
    """What a capture recorded, in tokens."""

    path: str
    model: str
    requests: int
    tokens: int  # recorded; the last token a request generates is never routed
    dropped: int  # seen and not recorded
    prefill_tokens: int
    decode_tokens: int
    sampled_out: int = 0  # of requests that the sampler left out
    rotated: int = 0  # recorded, and let go to make room
    share_error: float | None = None  # standard error of an expert's load by sampling, relative


def settle(recording: Recording, model: str, requests: int) -> CaptureResult:
    """The result of a recording that has ended. Raises MoeprofError if it broke off."""
    if recording.error is not None:
        raise MoeprofError(
            f"{recording.path}: {recording.error}; {recording.tokens} tokens were recorded, "
            f"{recording.dropped} were not"
        )
    return CaptureResult(
        path=str(recording.path),
        model=model,
        requests=requests,
        tokens=recording.tokens,
        dropped=recording.dropped,
        prefill_tokens=recording.prefill_tokens,
        decode_tokens=recording.decode_tokens,
        sampled_out=recording.sampled_out,
        rotated=recording.rotated,
    )


def check_numbers(**numbers: int) -> None:
    """Raises InputError unless each is at least 1."""
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} is {value}, it must be at least 1")


def check_output(output: Path, *, force: bool) -> None:
    """What the writer would refuse, refused before minutes of loading."""
    if output.exists() and not force:
        raise InputError(f"{output} exists, it will not be overwritten without --force")
    if output.exists() and not (output / MANIFEST).is_file():
        raise InputError(f"{output} is not a trace, --force replaces only traces")
