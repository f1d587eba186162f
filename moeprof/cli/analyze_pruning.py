"""Which experts could go, be merged or be adapted to a domain, judged on requests held out.

Pruning: the share of routing that is kept when the n least used experts of each layer go, and the
domain that suffers most. Merging: pairs of experts that are chosen in like contexts. Adapting
(LoRA, ESFT): the experts that most of a domain's routing goes to.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from moeprof.analysis.pruning import PruningResult, analyze_pruning
from moeprof.analysis.pruning.analyze import SHARE
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.progress import Progress
from moeprof.cli.traces import LabelPartsFlag, TraceArgument, open_and_warn
from moeprof.report.text.pruning import pruning_text


def run(
    trace: TraceArgument,
    domain: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Keep experts for this label alone.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Experts of each layer that stay.")
    ] = None,
    share: Annotated[
        float, typer.Option(metavar="P", help="Of a domain's routing that adapted experts reach.")
    ] = SHARE,
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="Weight format of the bytes saved.")
    ] = "bf16",
    seed: Annotated[int, typer.Option(help="Of the halves that requests are dealt to.")] = 0,
    label_parts: LabelPartsFlag = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[PruningResult]:
    """Run the command."""
    opened = open_and_warn(trace, quiet, label_parts=label_parts)
    with Progress(quiet=quiet).stage("pruning"):
        result = analyze_pruning(
            opened, domain=domain, keep=keep, share=share, format=format, seed=seed
        )
    text = partial(pruning_text, label_parts=label_parts)
    return Answer(result, text, json, inputs=[trace])
