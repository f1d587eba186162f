"""Recording a running server through its own routing API: nothing of ours runs inside it."""

from moeprof.capture.server.capture import ENGINES, capture_server
from moeprof.capture.server.recorder import capture_recorder
from moeprof.capture.server.result import ServerCapture

__all__ = ["ENGINES", "ServerCapture", "capture_recorder", "capture_server"]
