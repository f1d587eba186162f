"""Capture: from a running model's routers to a trace. Engines are imported when first used.

Names are imported when they are first used, as in `moeprof` itself: an engine that loads one of our
plugins pays for no more of this folder than that plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeprof.capture.llamacpp.run import capture_llamacpp
    from moeprof.capture.prompts import Prompt, read_prompts
    from moeprof.capture.recording import Recording
    from moeprof.capture.result import CaptureResult
    from moeprof.capture.transformers.record import record
    from moeprof.capture.transformers.run import capture_transformers

__all__ = [
    "CaptureResult",
    "Prompt",
    "Recording",
    "capture_llamacpp",
    "capture_transformers",
    "read_prompts",
    "record",
]

_HOMES = {
    "CaptureResult": "result",
    "Prompt": "prompts",
    "Recording": "recording",
    "capture_llamacpp": "llamacpp.run",
    "capture_transformers": "transformers.run",
    "read_prompts": "prompts",
    "record": "transformers.record",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
