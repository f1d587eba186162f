"""The `vllm.general_plugins` entry point, which vLLM calls in each of its processes at their start.

It does nothing unless it is armed: by MOEPROF_OUTPUT, which records from the start, or by naming
the plugin in VLLM_PLUGINS, which also loads its HTTP endpoint. Armed, it follows the import of
vLLM's worker module; what it does there is in `attach`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack

PLUGIN = "moeprof"  # of both entry points
WORKER_MODULE = "vllm.v1.worker.worker_base"
MANAGER_MODULE = "vllm.v1.engine.utils"

_following: ExitStack | None = None  # never closed: the plugin stays as long as its process


def armed(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the operator has asked for this plugin."""
    environment = os.environ if environment is None else environment
    named = [name.strip() for name in environment.get("VLLM_PLUGINS", "").split(",")]
    return bool(environment.get("MOEPROF_OUTPUT")) or PLUGIN in named


def register() -> None:
    """Attach to the workers of this process, once they are made. May be called again."""
    global _following
    if _following is not None or not armed():
        return
    from moeprof.capture.importing import when_imported
    from moeprof.capture.naming import KEY_VARIABLE

    # Set in the server before it starts its workers: a request has one hash on all of them.
    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(32))
    _following = ExitStack()
    when_imported(_following, WORKER_MODULE, _follow_workers)
    when_imported(_following, MANAGER_MODULE, _let_engines_end)


def _follow_workers() -> None:
    from moeprof.capture.vllm.attach import follow_workers

    follow_workers()


def _let_engines_end() -> None:
    from moeprof.capture.vllm.ending import let_engines_end

    let_engines_end()
