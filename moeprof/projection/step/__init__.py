"""Seconds of one engine step."""

from moeprof.projection.step.batch import Batch

__all__ = ["Batch"]
