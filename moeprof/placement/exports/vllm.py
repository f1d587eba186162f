"""vLLM's `--eplb-config`: vLLM 0.33 reads no map, but takes the number of redundant experts.

Read from vllm-project/vllm 0.33.0, vllm/config/parallel.py (`EPLBConfig`,
`expert_placement_strategy`) and vllm/distributed/eplb/eplb_state.py
(`build_initial_global_physical_to_logical_map`): it starts with experts in order of id and the
redundant ones repeating them from 0, and its own policy moves them after `step_interval` steps.
Without EPLB, `--expert-placement-strategy` names the two maps that it can start with: linear and
round_robin.
"""

from __future__ import annotations

import json
import shlex

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.exports.written import Wanted, Written

_INTERVAL = 3000  # vLLM's own default, and that of window_size below
_WINDOW = 1000
_NO_MAP = (
    "vLLM 0.33 reads no map: it starts with experts in order and moves them by its own policy; of "
    "this plan it takes the number of redundant experts"
)


def write(wanted: Wanted) -> Written:
    """Flags for as many redundant experts, or for the map itself where vLLM has a name for it."""
    wanted.refuse_uneven("vLLM")
    placement = wanted.plan.placement
    gpus = placement.topology.gpus
    head = f"--data-parallel-size {gpus} --enable-expert-parallel"
    named = _named(placement.physical_to_logical_map, gpus, placement.experts)
    if named is not None:
        content = {"expert_placement_strategy": named}
        return Written(_json(content), f"{head} --expert-placement-strategy {named}", [])
    config = {
        "num_redundant_experts": wanted.redundant,
        "window_size": _WINDOW,
        "step_interval": _INTERVAL,
    }
    flags = f"{head} --enable-eplb --eplb-config {shlex.quote(json.dumps(config))}"
    return Written(_json(config), flags, [_NO_MAP])


def _json(content: object) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _named(table: NDArray[np.int64], gpus: int, experts: int) -> str | None:
    """vLLM's name of the map, where every layer has it."""
    if table.shape[1] != experts:
        return None
    linear = np.arange(experts)
    if (table == linear).all():
        return "linear"
    dealt = linear.reshape(experts // gpus, gpus).T.ravel()
    return "round_robin" if (table == dealt).all() else None
