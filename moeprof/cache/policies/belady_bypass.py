"""Belady with bypass: what is needed later than every resident is not admitted.

The optimum of a cache that may pass an expert through: of the residents and the members of an
event, those needed soonest stay. No policy has fewer misses.
"""

from __future__ import annotations

from moeprof.cache.policies import belady
from moeprof.cache.policies.shelf import NO_EVENT, Shelf, hook, ignore
from moeprof.cache.policies.tree import Tree, take_lowest

new_state, arrive, hit, insert = belady.new_state, ignore, belady.hit, belady.insert
FORESIGHT = True


@hook
def evict(shelf: Shelf, state: Tree, item: int, event: int) -> int:
    """The one that is needed last, be it the newcomer; members of the event were served."""
    if -state.key[1] <= shelf.next_use[item]:
        return item
    return take_lowest(state, shelf, NO_EVENT)
