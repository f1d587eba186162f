"""SGLang's `--init-expert-location`: JSON with `physical_to_logical_map` [hidden layers][slots].

Read from sgl-project/sglang, python/sglang/srt/eplb/expert_location.py
(`compute_initial_expert_location_metadata`, `init_by_mapping`): the name must end in .json, every
hidden layer has a row whether or not it has experts, slots are grouped by rank, and there are
logical experts + `--ep-num-redundant-experts` of them.
"""

from __future__ import annotations

import json
import shlex

import numpy as np

from moeprof.errors import InputError
from moeprof.placement.exports.written import Wanted, Written


def write(wanted: Wanted) -> Written:
    """The map; layers without experts get ids in order, which nothing reads."""
    wanted.refuse_uneven("SGLang")
    if not wanted.path.endswith(".json"):
        raise InputError(f"{wanted.path}: SGLang reads a map from a file that ends in .json")
    placement = wanted.plan.placement
    trivial = np.arange(placement.topology.slots_in_all) % placement.experts
    rows = wanted.by_hidden_layer(placement.physical_to_logical_map, trivial)
    content = json.dumps({"physical_to_logical_map": rows}) + "\n"
    gpus, nodes = placement.topology.gpus, placement.topology.nodes
    flags = f"--tp-size {gpus} --ep-size {gpus}"
    flags += f" --nnodes {nodes}" if nodes > 1 else ""
    flags += f" --ep-num-redundant-experts {wanted.redundant}"
    flags += f" --init-expert-location {shlex.quote(wanted.path)}"
    note = f"the map has {len(rows)} rows, one a hidden layer: a model with more needs more"
    return Written(content.encode(), flags, [note])
