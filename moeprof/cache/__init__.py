"""Replay of expert caches: any policy at any size, and the exact LRU curve."""

from moeprof.cache.contracts import CONTRACTS, Contract
from moeprof.cache.curve import LruCurve, lru_curve
from moeprof.cache.policies import POLICIES
from moeprof.cache.quotas import best_quotas
from moeprof.cache.replay import replay_cache
from moeprof.cache.requests import Scope
from moeprof.cache.results import CacheReplay, CacheReplays
from moeprof.cache.verdict import CacheVerdict, judge_cache

__all__ = [
    "CONTRACTS",
    "POLICIES",
    "CacheReplay",
    "CacheReplays",
    "CacheVerdict",
    "Contract",
    "LruCurve",
    "Scope",
    "best_quotas",
    "judge_cache",
    "lru_curve",
    "replay_cache",
]
