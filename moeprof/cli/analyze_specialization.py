"""Do domains use different experts? Divergence beside chance, layers, specialists, distances.

Domains are the labels of the requests. What chance gives is measured by shuffling labels over
requests; intervals draw requests anew, never tokens.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Annotated

import typer

from moeprof.analysis import SpecializationResult, analyze_specialization
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.specialization import specialization_text


class Counted(Enum):
    """How often a shared token counts."""

    ONCE = "once"
    ALL = "all"


def run(
    trace: TraceArgument,
    prefixes: Annotated[
        Counted,
        typer.Option(help="Tokens of beginnings that requests share: once for a label, or all."),
    ] = Counted.ONCE,
    shuffles: Annotated[int, typer.Option(help="How often labels are shuffled.")] = 200,
    seed: Annotated[int, typer.Option(help="Of shuffles and resamples.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[SpecializationResult]:
    """Run the command."""
    result = analyze_specialization(
        open_and_warn(trace, quiet), prefixes=prefixes.value, shuffles=shuffles, seed=seed
    )
    text = partial(specialization_text, path=str(trace))
    return Answer(result, text, json, inputs=[trace])
