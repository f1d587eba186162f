"""What each engine makes of its file, written from its source; nothing of ours is trusted."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml


def options(flags: str, *names: str) -> dict[str, Any]:
    """The values of `names` in a command line's flags; -x and --xy alike, --a-b is a_b."""
    parser = argparse.ArgumentParser(exit_on_error=True)
    for name in names:
        switch = name.endswith("!")
        action: dict[str, Any] = {"action": "store_true"} if switch else {}
        parser.add_argument(name.rstrip("!"), **action)
    return vars(parser.parse_args(shlex.split(flags)))


def sglang_map(flags: str, hidden_layers: int, experts: int) -> tuple[int, list[list[int]]]:
    """sgl-project/sglang python/sglang/srt/eplb/expert_location.py: ranks, and the map it uses.

    `compute_initial_expert_location_metadata` reads .json files as JSON and passes the whole dict
    to `init_by_mapping`; num_physical_experts is logical + redundant, and `ExpertLocationMetadata`
    divides it over ep_size without remainder.
    """
    given = options(
        flags,
        "--tp-size",
        "--nnodes",
        "--ep-size",
        "--ep-num-redundant-experts",
        "--init-expert-location",
    )
    data = given["init_expert_location"]
    assert data.endswith(".json")
    arguments = json.loads(Path(data).read_text())
    assert set(arguments) == {"physical_to_logical_map"}
    table = torch.tensor(arguments["physical_to_logical_map"])
    physical = experts + int(given["ep_num_redundant_experts"])
    ranks = int(given["ep_size"])
    assert table.shape == (hidden_layers, physical)
    assert physical % ranks == 0
    for row in table.tolist():  # _compute_logical_to_all_physical_map: each expert has a slot
        assert set(row) == set(range(experts))
    return ranks, table.tolist()


def trtllm_assignments(flags: str, experts: int) -> tuple[int, dict[int, list[int]]]:
    """NVIDIA/TensorRT-LLM tensorrt_llm/llmapi/llm_args.py `MoeLoadBalancerConfig`, a strict model,
    and what _torch/modules/fused_moe/interface.py `_init_load_balancer` asserts of its lists.
    """
    given = options(flags, "--tp_size", "--ep_size", "--extra_llm_api_options")
    config = yaml.safe_load(Path(given["extra_llm_api_options"]).read_text())
    balancer = config["moe_config"]["load_balancer"]
    known = {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert set(balancer) == known
    slots, ranks = balancer["num_slots"], int(given["ep_size"])
    assert slots % ranks == 0
    assert slots >= experts
    assert balancer["layer_updates_per_iter"] == 0
    for layer, row in balancer["initial_global_assignments"].items():
        assert isinstance(layer, int)
        assert len(row) == slots
        assert set(row) == set(range(experts))
    return ranks, balancer["initial_global_assignments"]


def ktransformers_masks(
    flags: str, hidden_layers: int, moe_layers: list[int], experts: int
) -> list[torch.Tensor]:
    """[hidden layers, experts] of both rules in use.

    kvcache-ai/ktransformers kt-kernel/python/expert_placement.py `_global_topk_mask`: the most
    counted of all layers, experts a layer x MoE layers of them. SGLang's fork,
    python/sglang/srt/layers/moe/kt_ep_wrapper.py `_load_activation_frequency` and
    `_build_gpu_expert_masks`: as many of each layer, and every MoE layer needs a count.
    """
    given = options(
        flags,
        "--kt-num-gpu-experts",
        "--kt-expert-placement-strategy",
        "--init-expert-location",
    )
    assert given["kt_expert_placement_strategy"] == "frequency"
    loaded = torch.load(given["init_expert_location"], map_location="cpu", weights_only=True)
    counts = loaded["logical_count"]
    assert tuple(counts.shape) == (hidden_layers, experts)
    each = int(given["kt_num_gpu_experts"])
    pooled = torch.zeros(hidden_layers * experts, dtype=torch.bool)
    flat = counts.to(torch.float32).reshape(-1)
    pooled[torch.topk(flat, each * len(moe_layers)).indices] = True
    layered = torch.zeros_like(counts, dtype=torch.bool)
    for layer in moe_layers:
        assert counts[layer].sum() > 0
        layered[layer, torch.argsort(counts[layer], descending=True, stable=True)[:each]] = True
    return [pooled.view(hidden_layers, experts), layered, loaded["gpu_experts_mask"]]


def llamacpp_on_cpu(flags: str, tensors: list[str]) -> list[str]:
    """The tensors that ggml-org/llama.cpp puts on the CPU.

    common/arg.cpp `parse_tensor_buffer_overrides` divides at commas and at the first '=';
    src/llama-model-loader.cpp searches each pattern in the name, the first that is found decides.
    `--n-cpu-moe N` is N patterns of common/common.h, `llm_ffn_exps_block_regex`.
    """
    given = options(flags, "-ot", "--n-cpu-moe")
    overrides = []
    for override in (given["ot"] or "").split(",") if given["ot"] else []:
        pattern, _, buffer = override.partition("=")
        assert buffer == "CPU"
        overrides.append(pattern)
    for layer in range(int(given["n_cpu_moe"] or 0)):
        overrides.append(rf"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps")
    return [name for name in tensors if any(re.search(p, name) for p in overrides)]


def cache_fork_slots(flags: str, experts: int) -> dict[int, set[int]]:
    """thecodacus/llama.cpp src/llama-model.cpp `init_moe_expert_cache`: the experts it uploads."""
    given = options(flags, "--moe-cache-profile", "--moe-cache-slots")
    counts: dict[int, Counter[int]] = {}
    for line in Path(given["moe_cache_profile"]).read_text().splitlines():
        assert len(line) < 4096  # fgets into char[4096]
        position, layer, *ids = map(int, line.split(","))
        if position >= 0:
            counts.setdefault(layer, Counter()).update(ids)
    slots = int(given["moe_cache_slots"])
    chosen = {}
    for layer, seen in counts.items():
        ranked = sorted((-count, expert) for expert, count in seen.items() if expert < experts)
        chosen[layer] = {expert for _, expert in ranked[:slots]}
    return chosen


def vllm_arguments(flags: str) -> dict[str, Any]:
    """vllm-project/vllm vllm/config/parallel.py: `EPLBConfig` forbids keys it does not know."""
    given = options(
        flags,
        "--data-parallel-size",
        "--enable-expert-parallel!",
        "--enable-eplb!",
        "--eplb-config",
        "--expert-placement-strategy",
    )
    known = {
        "window_size",
        "step_interval",
        "num_redundant_experts",
        "log_balancedness",
        "log_balancedness_interval",
        "use_async",
        "policy",
        "communicator",
    }
    if given["eplb_config"]:
        given["eplb_config"] = json.loads(given["eplb_config"])
        assert set(given["eplb_config"]) <= known
    return given
