"""Watching a recording while it is made: figures of a sliding window."""

from moeprof.live.figures import HotExpert, LayerFigures, LiveFigures, SlotHits
from moeprof.live.server_source import ServerSource
from moeprof.live.source import Poll, RankStatus, Shape, Source, State, Status, StepRows
from moeprof.live.trace_source import TraceSource
from moeprof.live.watch import Watch

__all__ = [
    "HotExpert",
    "LayerFigures",
    "LiveFigures",
    "Poll",
    "RankStatus",
    "ServerSource",
    "Shape",
    "SlotHits",
    "Source",
    "State",
    "Status",
    "StepRows",
    "TraceSource",
    "Watch",
]
