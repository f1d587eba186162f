"""Do domains use different experts? Divergence beside chance, layers, specialists, distances.

Domains are the labels of the requests. What chance gives is measured by shuffling labels over
requests; intervals draw requests anew, never tokens. Then what else routing depends on: token ids,
position and phase; and how sure the router is, as far as it was recorded.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Annotated

import typer

from moeprof.analysis import (
    RoutingFactors,
    SpecializationResult,
    analyze_routing_factors,
    analyze_specialization,
)
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import LabelPartsFlag, TraceArgument, open_and_warn
from moeprof.report.text.routing_factors import unlabelled_text
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
    no_domains: Annotated[
        bool, typer.Option("--no-domains", help="Only what needs no labels.")
    ] = False,
    label_parts: LabelPartsFlag = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[SpecializationResult] | Answer[RoutingFactors]:
    """Run the command."""
    opened = open_and_warn(trace, quiet, label_parts=label_parts)
    if no_domains:
        factors = analyze_routing_factors(opened, prefixes=prefixes.value, seed=seed)
        return Answer(factors, partial(unlabelled_text, path=str(trace)), json, inputs=[trace])
    result = analyze_specialization(opened, prefixes=prefixes.value, shuffles=shuffles, seed=seed)
    text = partial(specialization_text, path=str(trace))
    return Answer(result, text, json, inputs=[trace])
