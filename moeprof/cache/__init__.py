"""Replay of expert caches: the exact LRU curve."""

from moeprof.cache.curve import LruCurve, Scope, lru_curve

__all__ = ["LruCurve", "Scope", "lru_curve"]
