"""Check a trace: every checksum, every id, every gap. Ends with 3 when something is wrong."""

from __future__ import annotations

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument
from moeprof.errors import CheckFailedError
from moeprof.report.text.trace import validated_trace_text
from moeprof.trace import TraceInfo, validate_trace


def run(
    trace: TraceArgument, json: JsonFlag = False, quiet: QuietFlag = False
) -> Answer[TraceInfo]:
    """Run the command."""
    checked = validate_trace(trace)
    code = CheckFailedError.exit_code if checked.problems else 0
    return Answer(checked, validated_trace_text, json, inputs=[trace], exit_code=code)
