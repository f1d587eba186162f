"""Maps for several aims at once: even in every window, few places a token, few experts moved."""

from moeprof.placement.annealing.anneal import Aim, anneal_map
from moeprof.placement.annealing.chance import signal_share

__all__ = ["Aim", "anneal_map", "signal_share"]
