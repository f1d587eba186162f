"""Maps that are even in many loads at once: samples of a window, or domains."""

from moeprof.placement.scenarios.search import even_in_all
from moeprof.placement.scenarios.window import window_scenarios

__all__ = ["even_in_all", "window_scenarios"]
