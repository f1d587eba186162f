"""Reuse of experts over time and over a batch: repeats by lag, working set, distinct experts.

Of decode tokens. A batch of B is a token each of B different requests of the recording.
"""

from __future__ import annotations

from moeprof.analysis import LocalityResult, analyze_locality
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.report.text.locality import locality_text


def run(
    trace: TraceArgument, json: JsonFlag = False, quiet: QuietFlag = False
) -> Answer[LocalityResult]:
    """Run the command."""
    result = analyze_locality(open_and_warn(trace, quiet))
    return Answer(result, locality_text, json, inputs=[trace])
