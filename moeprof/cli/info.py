"""Say what is in a trace: tokens, layers, labels, what was dropped, what is damaged."""

from __future__ import annotations

from dataclasses import replace

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_noted, share_error
from moeprof.report.text.trace import described_trace_text
from moeprof.trace import TraceInfo, describe_trace


def run(
    trace: TraceArgument, json: JsonFlag = False, quiet: QuietFlag = False
) -> Answer[TraceInfo]:
    """Run the command."""
    opened = open_noted(trace, quiet)
    info, error = describe_trace(opened), share_error(opened)
    if info.sampling and error is not None:
        info = replace(info, sampling={**info.sampling, "share_error": error})
    return Answer(info, described_trace_text, json, inputs=[trace])
