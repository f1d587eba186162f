"""Load by expert, layer, phase, label, step and over time: is it even, who is dead, does it shift?

Imbalance is max / mean (1 is even), balancedness mean / max. A step of B tokens takes a decode
token each of B different requests of the recording.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from moeprof.analysis import LoadResult, analyze_load, sampling_error
from moeprof.analysis.step_load import BATCHES
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.ranges import parse_numbers
from moeprof.cli.traces import LabelPartsFlag, TraceArgument, open_and_warn
from moeprof.report.text.load import load_text


def run(
    trace: TraceArgument,
    gpus: Annotated[
        int | None, typer.Option(help="Imbalance over this many GPUs, experts in order of id.")
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Tokens of a step, several with commas.", metavar="B,B")
    ] = ",".join(map(str, BATCHES)),
    seed: Annotated[int, typer.Option(help="Of steps, resamples and permutations.")] = 0,
    label_parts: LabelPartsFlag = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[LoadResult]:
    """Run the command."""
    opened = open_and_warn(trace, quiet, label_parts=label_parts)
    batches = parse_numbers(batch, "--batch") or BATCHES
    result = analyze_load(opened, gpus=gpus, batches=batches, seed=seed)
    estimated = opened.manifest.sampling is not None and not opened.counts_only
    sampling = sampling_error(opened) if estimated else None
    text = partial(load_text, sampling=sampling, trace=str(trace))
    return Answer(result, text, json, inputs=[trace])
