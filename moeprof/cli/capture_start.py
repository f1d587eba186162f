"""Begin recording in a running server that has moeprof's plugin, without restarting it.

The trace lies on the server's disk. The token, where the server wants one, is read from
MOEPROF_TOKEN or --token-file.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.capture.control import CaptureStatus, start_capture
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.limits import (
    AggregateFlag,
    DurationFlag,
    MaxSizeFlag,
    RotateFlag,
    SampleFlag,
    parse_bytes,
    parse_duration,
)
from moeprof.cli.recordings import (
    RequestNamesFlag,
    TokenFileFlag,
    TokenFlag,
    TokenIdsFlag,
    UrlFlag,
    read_token,
    status_text,
)


def run(
    url: UrlFlag,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The trace to write, on the server's disk.")
    ],
    max_size: MaxSizeFlag = None,
    rotate: RotateFlag = False,
    duration: DurationFlag = None,
    sample_requests: SampleFlag = None,
    seed: Annotated[int, typer.Option(help="Seed of --sample-requests.")] = 0,
    token_ids: TokenIdsFlag = False,
    aggregate: AggregateFlag = None,
    request_names: RequestNamesFlag = "hashed",
    token: TokenFlag = None,
    token_file: TokenFileFlag = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[CaptureStatus]:
    """Run the command."""
    status = start_capture(
        url,
        output,
        max_bytes=parse_bytes(max_size, "--max-size"),
        rotate=rotate,
        duration_s=parse_duration(duration, "--duration"),
        sample_requests=sample_requests,
        seed=seed,
        token_ids=token_ids,
        aggregate_steps=aggregate,
        request_names=request_names,
        force=force,
        token=read_token(token, token_file, url, quiet=quiet),
    )
    return Answer(status, status_text, json)
