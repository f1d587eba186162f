"""Send prompts to a running server and record the routing that it returns, without a plugin.

vLLM and SGLang return it when they were started with --enable-return-routed-experts. The prompts
file is .jsonl with {"text": ..., "label": ...} a line, or .txt with a prompt a line. What each
engine can show and what it cannot is in docs/servers.md. Exit code 1: a prompt has no answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.capture.http import is_loopback
from moeprof.capture.server import ServerCapture, capture_recorder, capture_server
from moeprof.capture.server.asking import Asking
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of, warn
from moeprof.cli.limits import (
    AggregateFlag,
    DurationFlag,
    MaxSizeFlag,
    RotateFlag,
    SampleFlag,
    parse_bytes,
    parse_duration,
)
from moeprof.cli.progress import Progress
from moeprof.cli.recordings import next_commands
from moeprof.cli.traces import share_error
from moeprof.errors import InputError
from moeprof.report.text.layout import pairs, wrapped
from moeprof.trace import open_trace

KEY_VARIABLE = "MOEPROF_API_KEY"


def run(
    url: Annotated[str, typer.Option(metavar="URL", help="The server, http://HOST:PORT.")],
    engine: Annotated[str, typer.Option(help="vllm or sglang.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts, .jsonl or .txt.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What is served, if it is not found out.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The server's name for it, of several.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="As a user's message, through the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate a prompt.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    choices: Annotated[int, typer.Option("--choices", "-n", help="Sequences a prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of sampling and of --sample-requests.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Requests under way at a time.")] = 8,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="For one whole answer.")] = "10m",
    retries: Annotated[
        int, typer.Option(help="Sent again only where the server cannot have begun it.")
    ] = 2,
    max_answer: Annotated[
        str, typer.Option(metavar="BYTES", help="A larger answer is a failure.")
    ] = "64MiB",
    prompt_start: Annotated[
        int, typer.Option(metavar="N", help="Leave out the routing of the first N prompt tokens.")
    ] = 0,
    keep_cached: Annotated[
        bool, typer.Option("--keep-cached", help="Record tokens of the prefix cache too.")
    ] = False,
    recorder: Annotated[
        bool, typer.Option("--recorder", help="SGLang's recorder of all traffic instead.")
    ] = False,
    dump_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the recorder's dumps appear here.")
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable with the API key.")
    ] = KEY_VARIABLE,
    max_size: MaxSizeFlag = None,
    rotate: RotateFlag = False,
    duration: DurationFlag = None,
    sample_requests: SampleFlag = None,
    aggregate: AggregateFlag = None,
    token_ids: Annotated[
        bool, typer.Option("--token-ids", help="Record token ids: they are the text.")
    ] = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ServerCapture]:
    """Run the command."""
    asking = Asking(max_new_tokens, temperature, seed, choices, chat, prompt_start, token_ids)
    options: dict[str, Any] = {
        "model": model,
        "asking": asking,
        "concurrency": concurrency,
        "timeout_s": parse_duration(timeout, "--timeout"),
        "token": _api_key(api_key_env, url, quiet=quiet),
        "duration_s": parse_duration(duration, "--duration"),
        "force": force,
    }
    refused = {
        "--max-size": max_size,
        "--rotate": rotate,
        "--sample-requests": sample_requests,
        "--aggregate": aggregate,
        "--prompt-start": prompt_start,
        "--keep-cached": keep_cached,
        "--served-model": served_model,
    }
    if recorder:
        _check_recorder(engine, refused)
    elif prompts is None or dump_dir is not None:
        raise InputError("give --prompts FILE; only --recorder goes without, and takes --dump-dir")
    started = time.monotonic()
    with Progress(quiet=quiet).stage(f"record {engine} at {url.rpartition('@')[2]}") as progress:
        if recorder:
            result = capture_recorder(
                url,
                output,
                prompts=prompts,
                dump_folder=dump_dir,
                token_ids=token_ids,
                progress=progress,
                **options,
            )
        else:
            assert prompts is not None
            result = capture_server(
                url,
                prompts,
                output,
                engine=engine,
                served_model=served_model,
                max_answer_bytes=parse_bytes(max_answer, "--max-answer") or 0,
                retries=retries,
                keep_cached=keep_cached,
                max_bytes=parse_bytes(max_size, "--max-size"),
                rotate=rotate,
                sample_requests=sample_requests,
                aggregate_steps=aggregate,
                progress=progress,
                **options,
            )
    seconds = time.monotonic() - started
    if sample_requests is not None:
        result = replace(result, share_error=share_error(open_trace(result.path)))
    if result.problem is not None:
        warn(result.problem)
    return Answer(
        result,
        _text,
        json,
        inputs=[*([prompts] if prompts else []), *files_of(model)],
        exit_code=1 if result.problem is not None else 0,
        timing={"requests_per_s": round(result.requests / seconds, 3)},
    )


def _check_recorder(engine: str, refused: Mapping[str, object]) -> None:
    """InputError on what SGLang's recorder cannot be asked for."""
    if engine != "sglang":
        raise InputError(f"--recorder is SGLang's; {engine} has none")
    given = next((option for option, value in refused.items() if value), None)
    if given is not None:
        raise InputError(f"--recorder takes no {given}: it records all traffic until it is stopped")


def _api_key(variable: str, url: str, *, quiet: bool) -> str | None:
    """The key, None if there is none. Its name is on the command line, the key itself never."""
    key = os.environ.get(variable)
    if key is None and variable != KEY_VARIABLE:
        raise InputError(f"--api-key-env {variable}: there is no such environment variable")
    if key and url.startswith("http:") and not is_loopback(url):
        warn(f"the API key goes to {url} unencrypted", quiet=quiet)
    return key or None


def _text(result: ServerCapture) -> str:
    """What was recorded, what failed, what the user should know, and what to run next."""
    requests = f"{result.requests:,} of {result.prompts:,} prompts"
    values = {
        "trace": result.path,
        "engine": f"{result.engine} {result.engine_version}".rstrip(),
        "model": result.model,
        "requests": requests if result.requests else "not told apart",
        "tokens": f"{result.tokens:,} ({result.prefill_tokens:,} prefill, "
        f"{result.decode_tokens:,} decode), {result.dropped:,} dropped",
    }
    optional = {
        "prefix cache": _cached(result),
        "not asked for": _tokens(result.unasked_tokens, "prompt tokens before --prompt-start"),
        "repeated": _tokens(result.repeated_tokens, "prompt tokens of further choices"),
        "sampled out": _tokens(result.sampled_out, "tokens of other requests, by chance"),
        "let go": _tokens(result.rotated, "older tokens, to make room"),
        "load known to": ""
        if result.share_error is None
        else f"{result.share_error:.1%} (standard error of an expert, mean)",
        "failed": ", ".join(f"{count:,} x {kind}" for kind, count in result.failed.items()),
    }
    values |= {name: text for name, text in optional.items() if text}
    notes = [wrapped(note, "  ", first="- ") for note in result.notes]
    following = ["", *next_commands(result.path)]
    return "\n".join([pairs(values), *notes, *following])


def _tokens(count: int, of_what: str) -> str:
    return f"{count:,} {of_what}" if count else ""


def _cached(result: ServerCapture) -> str:
    if not result.cached_tokens:
        return ""
    what = "recorded all the same" if result.cached_kept else "left out (--keep-cached)"
    return f"{result.cached_tokens:,} prompt tokens computed for earlier requests, {what}"
