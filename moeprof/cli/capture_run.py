"""Run your own Python script, unchanged, and record every transformers MoE model in it.

Options come before SCRIPT, the rest of the line is the script's. The first model that runs goes to
OUTPUT, others to OUTPUT-2 and so on. The exit code is the script's: 130 after Ctrl-C, with a whole
trace. Under torchrun (torchrun --nproc-per-node 8 -m moeprof capture run ...) all processes of a
node write one trace. The summary goes to stderr; with --json it goes to stdout and the script's
own stdout to stderr. docs/capture.md says what a recording costs, and what to sample.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TextIO

import typer

from moeprof.capture.transformers.script.capture import RecordedModel, ScriptResult, capture_script
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.limits import (
    AggregateFlag,
    DurationFlag,
    MarginsFlag,
    MaxSizeFlag,
    NextLayerFlag,
    RotateFlag,
    SampleFlag,
    left_behind,
    parse_bytes,
    parse_duration,
)
from moeprof.cli.recordings import next_commands
from moeprof.cli.traces import share_error
from moeprof.trace import open_trace

CONTEXT_SETTINGS = {"allow_interspersed_args": False}


def run(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A Python script.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="Arguments of the script.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")] = Path(
        "run.moetrace"
    ),
    max_size: MaxSizeFlag = None,
    rotate: RotateFlag = False,
    duration: DurationFlag = None,
    sample_requests: SampleFlag = None,
    aggregate: AggregateFlag = None,
    seed: Annotated[int, typer.Option(help="Seed of --sample-requests.")] = 0,
    weights: Annotated[bool, typer.Option("--weights", help="Record gate weights.")] = False,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Record token ids: they are the text.")
    ] = False,
    margins: MarginsFlag = False,
    next_layer: NextLayerFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ScriptResult] | int:
    """Run the command."""
    max_bytes = parse_bytes(max_size, "--max-size")
    duration_s = parse_duration(duration, "--duration")
    _log_to_stderr(logging.ERROR if quiet else logging.INFO)
    stream = _divert_stdout() if json else sys.stderr
    inputs = [script.absolute()]  # before the script changes the folder
    result = capture_script(
        script,
        arguments or [],
        output,
        weights=weights,
        token_ids=token_ids,
        margins=margins,
        next_layer=next_layer,
        force=force,
        max_bytes=max_bytes,
        rotate=rotate,
        duration_s=duration_s,
        sample_requests=sample_requests,
        seed=seed,
        aggregate_steps=aggregate,
    )
    if result.unmerged or (not json and (quiet or not result.traces)):
        return result.exit_code
    if sample_requests is not None:
        result = replace(result, traces=[_with_error(trace) for trace in result.traces])
    code = result.exit_code
    return Answer(result, _text, json, inputs=inputs, exit_code=code, stream=stream)


def _log_to_stderr(level: int) -> None:
    """Ours go to stderr whatever the script does with logging, and to no handler of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("moeprof: %(message)s"))
    logger = logging.getLogger("moeprof")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def _divert_stdout() -> TextIO:
    """From now on what is written to stdout goes to stderr; returns where stdout went."""
    sys.stdout.flush()
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stdout


def _with_error(trace: RecordedModel) -> RecordedModel:
    """`trace` with what sampling leaves uncertain."""
    return replace(trace, share_error=share_error(open_trace(trace.path)))


def _text(result: ScriptResult) -> str:
    lines = [line for trace in result.traces for line in _lines(trace)]
    if result.traces:
        lines += next_commands(result.traces[0].path)
    return "\n".join(f"moeprof: {line}" for line in lines)


def _lines(trace: RecordedModel) -> list[str]:
    counts = (
        f"{trace.path}: {trace.tokens:,} tokens of {trace.requests:,} requests to {trace.model} "
        f"({trace.prefill_tokens:,} prefill, {trace.decode_tokens:,} decode), "
        f"{trace.dropped:,} dropped"
    )
    return [counts, *left_behind(trace.rotated, trace.sampled_out, trace.share_error)]
