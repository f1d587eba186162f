"""Run a transformers model on prompts and record where its routers send every token.

The prompts file is .jsonl with {"text": ..., "label": ...} a line, or .txt with a prompt a line.
MiniMax-M3's sparse attention takes no padding: of its prompts, only neighbours of equal length
run together.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moeprof.capture.result import CaptureResult
from moeprof.capture.transformers.run import capture_transformers
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
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
from moeprof.cli.progress import Progress
from moeprof.cli.recordings import next_commands
from moeprof.cli.traces import share_error
from moeprof.trace import open_trace


def run(
    model_path: Annotated[str, typer.Argument(metavar="MODEL_PATH", help="Folder or hub id.")],
    prompts: Annotated[Path, typer.Option(help="Prompts, .jsonl or .txt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    batch_size: Annotated[int, typer.Option(help="Prompts that run together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate a prompt.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; CUDA where there is one.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of torch; small models want 1.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy.")] = False,
    max_size: MaxSizeFlag = None,
    rotate: RotateFlag = False,
    duration: DurationFlag = None,
    sample_requests: SampleFlag = None,
    aggregate: AggregateFlag = None,
    seed: Annotated[int, typer.Option(help="Seed of --sample and of --sample-requests.")] = 0,
    weights: Annotated[bool, typer.Option("--weights", help="Record gate weights.")] = False,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Record token ids: they are the text.")
    ] = False,
    margins: MarginsFlag = False,
    next_layer: NextLayerFlag = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[CaptureResult]:
    """Run the command."""
    max_bytes = parse_bytes(max_size, "--max-size")
    duration_s = parse_duration(duration, "--duration")
    with Progress(quiet=quiet).stage(f"record {model_path}") as progress:
        result = capture_transformers(
            model_path,
            prompts,
            output,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            threads=threads,
            sample=sample,
            seed=seed,
            weights=weights,
            token_ids=token_ids,
            margins=margins,
            next_layer=next_layer,
            max_bytes=max_bytes,
            rotate=rotate,
            duration_s=duration_s,
            sample_requests=sample_requests,
            aggregate_steps=aggregate,
            trust_remote_code=trust_remote_code,
            force=force,
            progress=progress,
        )
    if sample_requests is not None:
        result = replace(result, share_error=share_error(open_trace(result.path)))
    return Answer(result, summary, json, inputs=[prompts, *files_of(model_path)])


def summary(result: CaptureResult) -> str:
    """What was recorded, and what to do with it next."""
    return "\n".join(
        [
            f"{result.path}: {result.tokens:,} tokens of {result.requests} requests to "
            f"{result.model} ({result.prefill_tokens:,} prefill, {result.decode_tokens:,} decode), "
            f"{result.dropped:,} dropped",
            *left_behind(result.rotated, result.sampled_out, result.share_error),
            "",
            *next_commands(result.path),
        ]
    )
