"""Start your own vLLM server with the recording plugin, and say at its end what was recorded.

What follows -- is what you would give to 'vllm serve', or a whole command: vllm serve ...,
python -m ..., a script. Signals are handed on, the server's output and terminal are its own, and
so is the exit code if it fails. It can be switched meanwhile by moeprof capture start, stop and
status. A server that someone else starts records with MOEPROF_OUTPUT=T in its environment. The
summary goes to stderr; with --json it goes to stdout and the server's stdout to stderr.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from moeprof.capture.vllm.serve import ServedResult, capture_vllm
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.limits import (
    AggregateFlag,
    DurationFlag,
    MaxSizeFlag,
    RotateFlag,
    SampleFlag,
    left_behind,
    parse_bytes,
    parse_duration,
)
from moeprof.cli.recordings import (
    RequestNamesFlag,
    TokenIdsFlag,
    next_commands,
)
from moeprof.cli.traces import share_error
from moeprof.trace import open_trace

CONTEXT_SETTINGS = {"allow_interspersed_args": False}


def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGS", help="Of vllm serve, or a command.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")] = Path(
        "run.moetrace"
    ),
    max_size: MaxSizeFlag = None,
    rotate: RotateFlag = False,
    duration: DurationFlag = None,
    sample_requests: SampleFlag = None,
    seed: Annotated[int, typer.Option(help="Seed of --sample-requests.")] = 0,
    token_ids: TokenIdsFlag = False,
    aggregate: AggregateFlag = None,
    request_names: RequestNamesFlag = "hashed",
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ServedResult] | int:
    """Run the command."""
    _log_to_stderr(logging.ERROR if quiet else logging.INFO)
    result = capture_vllm(
        arguments or [],
        output,
        stdout=sys.stderr.fileno() if json else None,
        max_bytes=parse_bytes(max_size, "--max-size"),
        rotate=rotate,
        duration_s=parse_duration(duration, "--duration"),
        sample_requests=sample_requests,
        seed=seed,
        token_ids=token_ids,
        aggregate_steps=aggregate,
        request_names=request_names,
        force=force,
    )
    code = result.exit_code or (0 if result.path else 1)
    if quiet and not json:
        return code
    return Answer(result, _text, json, exit_code=code, stream=sys.stdout if json else sys.stderr)


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("moeprof: %(message)s"))
    logger = logging.getLogger("moeprof")
    logger.addHandler(handler)
    logger.setLevel(level)


def _text(result: ServedResult) -> str:
    lines = _lines(result)
    ended = f"the server ended with exit code {result.exit_code}"
    return "\n".join(f"moeprof: {line}" for line in ([ended] * bool(result.exit_code) + lines))


def _lines(result: ServedResult) -> list[str]:
    if result.path is None:
        early = "the server ended before recording began"
        silent = "the plugin did not begin, the server's log says why"
        why = "; ".join(result.problems) or (early if result.exit_code else silent)
        return [f"nothing was recorded: {why}"]
    counts = (
        f"{result.path}: {result.tokens:,} tokens of {result.requests:,} requests "
        f"({result.prefill_tokens:,} prefill, {result.decode_tokens:,} decode), "
        f"{result.dropped:,} dropped"
    )
    trace = open_trace(result.path)
    left = left_behind(result.rotated, result.sampled_out, share_error(trace))
    return [counts, *left, *result.problems, *next_commands(result.path, result.writers)]
