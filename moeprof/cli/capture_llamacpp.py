"""Run a GGUF model on prompts with llama.cpp and record where its routers send every token.

The prompts file is .jsonl with {"text": ..., "label": ...} a line, or .txt with a prompt a line.
They run one after the other. Of a model that is split into several files, give the first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moeprof.capture.llamacpp.run import capture_llamacpp
from moeprof.capture.result import CaptureResult
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.capture_transformers import summary
from moeprof.cli.limits import (
    AggregateFlag,
    DurationFlag,
    MarginsFlag,
    MaxSizeFlag,
    RotateFlag,
    SampleFlag,
    parse_bytes,
    parse_duration,
)
from moeprof.cli.progress import Progress
from moeprof.cli.traces import share_error
from moeprof.trace import open_trace


def run(
    model_path: Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="The model.")],
    prompts: Annotated[Path, typer.Option(help="Prompts, .jsonl or .txt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the model's chat template.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy.")] = False,
    temperature: Annotated[float, typer.Option(help="Of --sample.")] = 0.8,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of context; by default what the longest prompt needs."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Tokens per call, as llama.cpp's -b.")] = 512,
    micro_batch: Annotated[int, typer.Option(help="Tokens per graph, as llama.cpp's -ub.")] = 512,
    gpu_layers: Annotated[
        int | None,
        typer.Option(help="Layers on the GPU, as llama.cpp's -ngl; by default its own choice."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; by default llama.cpp's choice.")
    ] = None,
    cache_type: Annotated[
        str, typer.Option(help="Of keys and values: f16, f32, bf16, q8_0 or q4_0.")
    ] = "f16",
    last_layer: Annotated[
        str,
        typer.Option(help="output: leave out the last layer of prompt tokens, as llama.cpp does."),
    ] = "all",
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
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[CaptureResult]:
    """Run the command."""
    max_bytes = parse_bytes(max_size, "--max-size")
    duration_s = parse_duration(duration, "--duration")
    with Progress(quiet=quiet).stage(f"record {model_path}") as progress:
        result = capture_llamacpp(
            model_path,
            prompts,
            output,
            max_new_tokens=max_new_tokens,
            chat=chat,
            sample=sample,
            temperature=temperature,
            seed=seed,
            context=context,
            batch=batch,
            micro_batch=micro_batch,
            gpu_layers=gpu_layers,
            threads=threads,
            cache_type=cache_type,
            last_layer=last_layer,
            weights=weights,
            token_ids=token_ids,
            margins=margins,
            max_bytes=max_bytes,
            rotate=rotate,
            duration_s=duration_s,
            sample_requests=sample_requests,
            aggregate_steps=aggregate,
            force=force,
            progress=progress,
        )
    if sample_requests is not None:
        result = replace(result, share_error=share_error(open_trace(result.path)))
    return Answer(result, summary, json, inputs=[prompts])
