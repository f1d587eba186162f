"""What differs between two recordings, or between two results, and how sure that is.

A and B are traces (of two models, checkpoints, quantizations or workloads) or the JSON documents
that a command printed with --json. Of traces of the same tokens it also says how far both route
them alike; of three or more, checkpoints of one training in order, how far each agrees with the
last: router saturation. With --fail-on it ends with 3 where a condition holds, such as
'mean_imbalance > 5%', 'gini > 0.01 and significant', 'agreement < 95%' or 'significant'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.analysis.comparison import (
    TraceComparison,
    check_conditions,
    compare_documents,
    compare_traces,
    measures_of,
    read_document,
    router_saturation,
)
from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, warn
from moeprof.cli.progress import Progress
from moeprof.cli.traces import LabelPartsFlag, open_and_warn
from moeprof.errors import CheckFailedError, InputError
from moeprof.report.comparison_figures import save_comparison_figure
from moeprof.report.text.comparison import comparison_text, documents_text, saturation_text
from moeprof.trace import Trace


def run(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="A B [C...]", help="Traces, or two JSON documents.")
    ],
    fail_on: Annotated[
        str | None, typer.Option(metavar="EXPR", help="End with 3 where this holds.")
    ] = None,
    same_tokens: Annotated[
        bool, typer.Option("--same-tokens", help="Both are of the same tokens, ids or not.")
    ] = False,
    align: Annotated[
        bool, typer.Option("--align", help="Match experts: ids are not comparable.")
    ] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw two traces layer by layer.")
    ] = None,
    label_parts: LabelPartsFlag = None,
    force: ForceFlag = False,
    seed: Annotated[int, typer.Option(help="Of resamples and permutations.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Any]:
    """Run the command."""
    if len(inputs) < 2:
        raise InputError(f"compare takes two at least, moeprof compare {inputs[0]} B")
    documents = [read_document(path) for path in inputs]
    known = [document for document in documents if document is not None]
    if known:
        result, text = _compare_documents(inputs, known)
    else:
        traces = [open_and_warn(path, quiet, label_parts=label_parts) for path in inputs]
        result, text = _compare_traces(traces, same_tokens, align, seed, quiet)
    if png is not None:
        if not isinstance(result, TraceComparison):
            raise InputError("--png draws two traces")
        path = save_comparison_figure(result, png, force=force)
        warn(f"wrote {path}", quiet=quiet)
    failed = check_conditions(fail_on, measures_of(result)) if fail_on is not None else []
    code = CheckFailedError.exit_code if failed else 0
    return Answer(replace(result, failed=failed), text, json, inputs=inputs, exit_code=code)


Compared = tuple[Any, Callable[[Any], str]]  # the comparison, and what puts it in words


def _compare_documents(inputs: list[Path], known: list[dict[str, Any]]) -> Compared:
    if len(inputs) != 2 or len(known) != 2:
        raise InputError("two results can be compared, or traces: not both, and not three")
    return compare_documents(*known, names=(str(inputs[0]), str(inputs[1]))), documents_text


def _compare_traces(
    traces: list[Trace], same_tokens: bool, align: bool, seed: int, quiet: bool
) -> Compared:
    with Progress(quiet=quiet).stage("comparing"):
        if len(traces) > 2:
            return router_saturation(traces, same_tokens=same_tokens, seed=seed), saturation_text
        result = compare_traces(*traces, same_tokens=same_tokens, align=align, seed=seed)
        return result, comparison_text
