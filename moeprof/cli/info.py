"""Say what is in a trace: tokens, layers, labels, what was dropped, what is damaged."""

from __future__ import annotations

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument
from moeprof.report.text import trace_info_text
from moeprof.trace import TraceInfo, describe_trace, open_trace


def run(
    trace: TraceArgument, json: JsonFlag = False, quiet: QuietFlag = False
) -> Answer[TraceInfo]:
    """Run the command."""
    return Answer(describe_trace(open_trace(trace)), trace_info_text, json, inputs=[trace])
