"""Experts fetched ahead of need: predictors, deadlines, and what became of every fetch."""

from moeprof.cache.prefetch.predictors.names import PREDICTORS
from moeprof.cache.prefetch.replay import replay_prefetch
from moeprof.cache.prefetch.results import PrefetchReplay, PrefetchReplays

__all__ = ["PREDICTORS", "PrefetchReplay", "PrefetchReplays", "replay_prefetch"]
