"""Record a model that does not fit: one decoder layer at a time is read from its checkpoint.

The prompts file is .jsonl with {"text": ..., "completion": ..., "label": ...} a line, or .txt with
a prompt a line. Text is prefill; a completion, if given, is fed as if the model had written it, and
its tokens are decode. Nothing is generated. A run that was interrupted goes on at its layer when
the same command is given again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.capture.stream.run import StreamResult, stream
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of, warn
from moeprof.cli.limits import MarginsFlag, parse_bytes


def run(
    model_path: Annotated[
        str, typer.Argument(metavar="MODEL_PATH", help="Folder of a safetensors checkpoint.")
    ],
    prompts: Annotated[Path, typer.Option(help="Prompts, .jsonl or .txt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; CUDA where there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of torch; small models want 1.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Take no more memory, 20GiB say; 9/10 of what is free."),
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Record gate weights.")] = False,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Record token ids: they are the text.")
    ] = False,
    margins: MarginsFlag = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[StreamResult]:
    """Run the command."""
    result = stream(
        model_path,
        prompts,
        output,
        device=device,
        dtype=dtype,
        threads=threads,
        memory_bytes=parse_bytes(memory, "--memory"),
        weights=weights,
        token_ids=token_ids,
        margins=margins,
        trust_remote_code=trust_remote_code,
        force=force,
        progress=lambda line: warn(line, quiet=quiet),
    )
    return Answer(result, summary, json, inputs=[prompts, *files_of(model_path)])


def summary(result: StreamResult) -> str:
    """What was recorded, what it took, and what to do with it next."""
    return "\n".join(
        [
            f"{result.path}: {result.tokens:,} tokens of {result.requests} requests to "
            f"{result.model} ({result.prefill_tokens:,} prefill, {result.decode_tokens:,} decode)",
            f"{result.layers} layers, {result.bytes_read / 1e9:.2f} GB read, "
            f"{result.peak_memory_bytes / 1e9:.2f} GB of memory at most",
            "",
            f"Next:  moeprof info {result.path}",
            f"       moeprof report {result.path} -o report.html",
        ]
    )
