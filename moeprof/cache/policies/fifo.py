"""FIFO: the item that has been here longest goes."""

from moeprof.cache.policies import lru
from moeprof.cache.policies.shelf import ignore, ignore_hit

new_state, arrive, evict, insert = lru.new_state, ignore, lru.evict, lru.insert
hit = ignore_hit
