"""Maps that are even in several loads at once, domains say."""

from moeprof.placement.scenarios.search import even_in_all

__all__ = ["even_in_all"]
