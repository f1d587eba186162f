"""Maps for several aims at once: even in every window, few places a token, few experts moved."""

from moeprof.placement.annealing.anneal import Aim, anneal_map

__all__ = ["Aim", "anneal_map"]
