"""TensorRT-LLM's load balancer in a YAML of options: `moe_config.load_balancer`.

Read from NVIDIA/TensorRT-LLM, tensorrt_llm/llmapi/llm_args.py (`MoeLoadBalancerConfig`),
tensorrt_llm/_torch/modules/fused_moe/interface.py and examples/wide_ep: `num_slots` divides over
the ranks; `initial_global_assignments` has the expert of every slot for every MoE layer, by the
layer's index in the model, slots grouped by rank and every expert among them;
`layer_updates_per_iter: 0` keeps it so.
"""

from __future__ import annotations

import shlex

from moeprof.placement.exports.written import Wanted, Written


def write(wanted: Wanted) -> Written:
    """The static balancer: YAML by hand, for its keys are few and its lists are of integers."""
    wanted.refuse_uneven("TensorRT-LLM")
    placement = wanted.plan.placement
    lines = [
        "moe_config:",
        "  load_balancer:",
        f"    num_slots: {placement.topology.slots_in_all}",
        "    layer_updates_per_iter: 0",
        "    initial_global_assignments:",
    ]
    table = placement.physical_to_logical_map.tolist()
    lines += [f"      {layer}: {row}" for layer, row in zip(wanted.plan.layers, table, strict=True)]
    gpus = placement.topology.gpus
    flags = f"--tp_size {gpus} --ep_size {gpus}"
    flags += f" --extra_llm_api_options {shlex.quote(wanted.path)}"
    note = "the wide-EP backends read it: add moe_config.backend WIDEEP where it is not the default"
    return Written(("\n".join(lines) + "\n").encode(), flags, [note])
