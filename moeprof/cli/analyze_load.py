"""Load by expert, layer, phase and label, and its imbalance over time.

Imbalance is max / mean (1 is even), balancedness mean / max.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from moeprof.analysis import LoadResult, analyze_load, sampling_error
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.load import load_text


def run(
    trace: TraceArgument,
    gpus: Annotated[
        int | None, typer.Option(help="Imbalance over this many GPUs, experts in order of id.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[LoadResult]:
    """Run the command."""
    opened = open_and_warn(trace, quiet)
    result = analyze_load(opened, gpus=gpus)
    estimated = opened.manifest.sampling is not None and not opened.counts_only
    sampling = sampling_error(opened) if estimated else None
    return Answer(result, partial(load_text, sampling=sampling), json, inputs=[trace])
