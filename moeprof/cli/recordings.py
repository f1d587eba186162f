"""The options of a recording that a server makes, its token, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moeprof.capture.control import CaptureStatus
from moeprof.capture.http import is_loopback
from moeprof.cli.answer import warn
from moeprof.cli.limits import left_behind
from moeprof.errors import InputError
from moeprof.report.text.layout import printable
from moeprof.report.wording import as_next, command

TOKEN_VARIABLE = "MOEPROF_TOKEN"

UrlFlag = Annotated[str, typer.Option("--url", metavar="URL", help="http://HOST:PORT")]
TokenFlag = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help=f"Others can read it here; better {TOKEN_VARIABLE}."),
]
TokenFileFlag = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A file that holds the server's token.")
]
TokenIdsFlag = Annotated[
    bool, typer.Option("--token-ids", help="Record token ids: they are the text.")
]
RequestNamesFlag = Annotated[
    str, typer.Option(metavar="KIND", help="Engine's request ids: hashed, plain or none.")
]


def read_token(token: str | None, file: Path | None, url: str, *, quiet: bool) -> str | None:
    """The token to send to `url`: of the options, else of MOEPROF_TOKEN. Warns where it shows."""
    if token is not None and file is not None:
        raise InputError("give --token or --token-file, not both")
    if token is not None:
        warn(f"--token shows in the list of processes; {TOKEN_VARIABLE} does not", quiet=quiet)
    if file is not None:
        token = _token_in(file)
    token = token or os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if token and url.startswith("http:") and not is_loopback(url):
        warn(f"the token goes to {url} unencrypted", quiet=quiet)
    return token


def _token_in(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"--token-file {file}: {reason}") from None
    if not token:
        raise InputError(f"--token-file {file}: it is empty")
    return token


def status_text(status: CaptureStatus) -> str:
    """How a recording stands, why ranks fail, and what to do next."""
    if status.path is None and not status.tokens:
        state = "recording" if status.recording else "nothing was recorded"
        lines = [f"{status.url}: {state}", *_problems(status)]
    else:
        lines = [*_recorded(status), *_problems(status), "", *_next(status)]
    return "\n".join(map(printable, lines))  # much of it is what a server says


def next_commands(path: str, writers: int = 1) -> list[str]:
    """What to do with a trace; of several ranks, how to make one of their parts."""
    commands = [command("info", path), command("report", path, "-o", "report.html")]
    if writers > 1:
        commands.append(command("merge", path, "-o", "merged.moetrace"))
    return as_next(commands)


def _recorded(status: CaptureStatus) -> list[str]:
    state = "recording to" if status.recording else "recorded"
    state = "still writing" if status.closing else state
    counts = (
        f"{status.url}: {state} {status.path}: {status.tokens:,} tokens "
        f"({status.prefill_tokens:,} prefill, {status.decode_tokens:,} decode), "
        f"{status.dropped:,} dropped"
    )
    left = left_behind(status.rotated, status.sampled_out, None)
    return [counts, *_reasons(status), *_ranks(status), *left]


def _reasons(status: CaptureStatus) -> list[str]:
    reasons = (f"{tokens:,} {reason}" for reason, tokens in status.dropped_by_reason.items())
    return [f"dropped: {', '.join(reasons)}"] if status.dropped else []


def _next(status: CaptureStatus) -> list[str]:
    if status.recording or status.closing:
        verbs = ("status", "stop") if status.recording else ("status",)
        return as_next(command("capture", verb, "--url", status.url) for verb in verbs)
    return next_commands(str(status.path), len(status.writing))


def _ranks(status: CaptureStatus) -> list[str]:
    """Of whom: the model and the engine, and how many ranks write."""
    if not status.ranks:
        return []
    first, writing = status.ranks[0], len(status.writing)
    layers = {layer for rank in status.writing for layer in rank["layers"]}
    engine = f"{first['engine']} {first['engine_version']}".strip()
    of_ranks = f", {writing} of {len(status.ranks)} ranks write" if len(status.ranks) > 1 else ""
    return [
        f"{first['model'] or 'model not stated'} in {engine or 'an engine not stated'}: "
        f"{len(layers)} MoE layers, top-{first['top_k']} of {first['experts']} experts{of_ranks}"
    ]


def _problems(status: CaptureStatus) -> list[str]:
    return [f"problem: {error}" for error in status.errors]
