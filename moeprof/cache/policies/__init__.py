"""Cache policies: one a file, as the hooks that the loop in `driver.py` is compiled with."""

from moeprof.cache.policies.names import POLICIES, load_policy

__all__ = ["POLICIES", "load_policy"]
