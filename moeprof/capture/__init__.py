"""Capture: from a running model's routers to a trace. Engines are imported when first used."""

from moeprof.capture.prompts import Prompt, read_prompts
from moeprof.capture.recording import Recording
from moeprof.capture.transformers.record import record
from moeprof.capture.transformers.run import CaptureResult, capture_transformers

__all__ = [
    "CaptureResult",
    "Prompt",
    "Recording",
    "capture_transformers",
    "read_prompts",
    "record",
]
