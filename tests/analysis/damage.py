"""A recording that a flipped bit has reached, for whoever counts or replays it."""

from __future__ import annotations

from moeprof.model import MoEModel
from moeprof.trace import Trace, synthesize_rows
from tests.conftest import small_config


def with_foreign_id() -> Trace:
    """Id 250 once in layer 2 of a recording of 16 experts, past whatever checks rows on entry."""
    rows, requests = synthesize_rows(MoEModel.from_config(small_config()), 60)
    rows.experts[12, 1, 0] = 250  # of a decode token
    trace = Trace.in_memory(MoEModel.from_config(small_config(experts=256)), rows, requests)
    trace.model = MoEModel.from_config(small_config())
    trace.experts_per_layer = 16
    return trace
