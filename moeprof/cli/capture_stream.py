"""Record a model that does not fit: one decoder layer at a time is read from its checkpoint.

The prompts file is .jsonl with {"text": ..., "completion": ..., "label": ...} a line, or .txt with
a prompt a line; "token_ids" and "completion_token_ids" may stand in the place of texts. Text is
prefill; a completion, if given, is fed as if the model had written it, and its tokens are decode.
Nothing is generated. A run that was interrupted goes on at its layer when the same command is given
again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.capture.prompts import Prompt, read_prompts
from moeprof.capture.stream.request_log import chat_template, prompts_from_log
from moeprof.capture.stream.run import StreamResult, stream
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of, warn
from moeprof.cli.limits import MarginsFlag, parse_bytes
from moeprof.cli.recordings import RequestNamesFlag, next_commands
from moeprof.errors import InputError


def run(
    model_path: Annotated[
        str, typer.Argument(metavar="MODEL_PATH", help="Folder of a safetensors checkpoint.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompts, .jsonl or .txt.")] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Instead: an OpenAI-compatible server's requests with answers, .jsonl."),
    ] = None,
    log_requests: Annotated[
        Path | None, typer.Option(help="The batch's input, where --log is its output.")
    ] = None,
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
    batch_size: Annotated[
        int | None,
        typer.Option(help="Texts of equal length that run together; all that fit. 1 is exact."),
    ] = None,
    request_names: RequestNamesFlag = "hashed",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[StreamResult]:
    """Run the command."""
    wanted = _prompts(model_path, prompts, log, log_requests, trust_remote_code=trust_remote_code)
    result = stream(
        model_path,
        wanted,
        output,
        device=device,
        dtype=dtype,
        threads=threads,
        memory_bytes=parse_bytes(memory, "--memory"),
        weights=weights,
        token_ids=token_ids,
        margins=margins,
        batch_size=batch_size,
        request_names=request_names,
        trust_remote_code=trust_remote_code,
        force=force,
        progress=lambda line: warn(line, quiet=quiet),
    )
    given = [path for path in (prompts, log, log_requests) if path is not None]
    return Answer(result, summary, json, inputs=[*given, *files_of(model_path)])


def _prompts(
    model_path: str,
    prompts: Path | None,
    log: Path | None,
    log_requests: Path | None,
    *,
    trust_remote_code: bool,
) -> list[Prompt]:
    """From whichever file was given. InputError unless it is one."""
    if (prompts is None) == (log is None):
        raise InputError("give --prompts FILE or --log FILE, one of them")
    if prompts is not None:
        return read_prompts(prompts)
    assert log is not None
    template = chat_template(model_path, trust_remote_code=trust_remote_code)
    return prompts_from_log(log, template, asked=log_requests)


def summary(result: StreamResult) -> str:
    """What was recorded, what it took, and what to do with it next."""
    return "\n".join(
        [
            f"{result.path}: {result.tokens:,} tokens of {result.requests} requests to "
            f"{result.model} ({result.prefill_tokens:,} prefill, {result.decode_tokens:,} decode)",
            f"{result.layers} layers, {result.bytes_read / 1e9:.2f} GB read, "
            f"{result.peak_memory_bytes / 1e9:.2f} GB of memory at most",
            "",
            *next_commands(result.path),
        ]
    )
