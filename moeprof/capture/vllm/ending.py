"""Letting a server's engines end, so that their traces are closed.

A server that is told to stop (SIGTERM) passes it on to its engine processes and, unless started
with --shutdown-timeout, kills them in the same moment (`shutdown` in vllm/v1/utils.py, 0.32; on
ROCm vLLM itself waits longer, for its own sake).
"""

from __future__ import annotations

from typing import Any

GRACE_S = 5.0  # at most: who has ended is not waited for


def let_engines_end() -> None:
    """Give the engines of this server `GRACE_S` to end before they are killed."""
    from vllm.v1.engine import utils

    end = getattr(utils, "shutdown", None)
    if end is None:
        return

    def shutdown(processes: Any, timeout: float | None = None) -> Any:
        return end(processes, timeout=max(GRACE_S, GRACE_S if timeout is None else timeout))

    utils.shutdown = shutdown
