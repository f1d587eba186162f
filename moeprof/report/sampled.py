"""What a sampled or rotated recording leaves uncertain, in the words of every output."""

from __future__ import annotations

from moeprof.analysis import SamplingError
from moeprof.report.wording import counted, percent
from moeprof.trace import TraceInfo

FEW_REQUESTS = 30  # below, linearised standard errors are too small (moeprof.analysis.sampling)


def sampled_words(info: TraceInfo) -> str:
    """'60 of 600 requests (each kept with probability 0.1, seed 7)'; '' where all were kept."""
    if not info.sampling:
        return ""
    return (
        f"{info.requests:,} of {counted(info.requests_seen, 'request')} (each kept with "
        f"probability {info.sampling['rate']:g}, seed {info.sampling['seed']})"
    )


def followed_words(info: TraceInfo, followed_tokens: int) -> list[str]:
    """The sentence that says which tokens are followed; none where all are."""
    if followed_tokens == info.tokens:
        return []
    return [
        f"Of the {info.tokens:,} tokens of the recording, the {followed_tokens:,} in its middle "
        "are followed here, so that the page does not take minutes; moeprof analyze and "
        "moeprof cache follow all."
    ]


def rotated_words(info: TraceInfo) -> str:
    """'12,000 older tokens let go to make room'; '' where none were."""
    if not info.rotated_tokens:
        return ""
    return f"{counted(info.rotated_tokens, 'older token')} let go to make room"


def error_words(error: SamplingError | None) -> str:
    """How far shares may lie from those of all requests; says so where that is not known."""
    if error is None:
        return "How far they may lie from those of all requests is not known."
    few = (
        f" From {counted(error.requests, 'request')} the error itself is a rough guess, and too "
        "low rather than too high."
        if error.requests < FEW_REQUESTS
        else ""
    )
    return (
        f"The standard error of an expert's share is {percent(error.mean_share_error)} of it on "
        f"average and {percent(error.max_share_error)} at most; the tokens here stand for "
        f"{error.estimated_tokens:,.0f}, give or take {percent(error.tokens_error)}.{few}"
    )
