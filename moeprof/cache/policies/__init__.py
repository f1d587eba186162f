"""Cache policies: one a file, as the hooks that the loop in `driver.py` is compiled with."""

from moeprof.cache.policies.names import POLICIES, find_policy, load_policy

__all__ = ["POLICIES", "find_policy", "load_policy"]
