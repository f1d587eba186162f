"""vLLM: `vllm serve`."""

from __future__ import annotations

import json

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand

_DRAFTS = {"eagle3": "Inferact/MiniMax-M3-EAGLE3", "eagle3-gqa": "Inferact/MiniMax-M3-EAGLE3-GQA"}


def write(launch: Launch) -> LaunchCommand:
    """`--max-num-seqs` is of one data-parallel group; expert parallel is all ranks or none."""
    deployment, split = launch.deployment, launch.deployment.parallelism
    nodes = deployment.cluster.nodes
    redundant = deployment.held.redundant
    flags = {
        "--tensor-parallel-size": split.tp,
        "--pipeline-parallel-size": split.pp if split.pp > 1 else None,
        "--data-parallel-size": split.dp if split.dp > 1 else None,
        "--enable-expert-parallel": launch.expert_parallel,
        "--enable-eplb": redundant > 0,
        "--eplb-config": json.dumps({"num_redundant_experts": redundant}) if redundant else None,
        "--max-num-seqs": launch.requests,
        "--max-model-len": launch.context,
        "--kv-cache-dtype": "auto" if deployment.kv_dtype == "bf16" else deployment.kv_dtype,
        "--gpu-memory-utilization": launch.utilization,
        "--block-size": _block(launch),
        "--speculative-config": _speculation(launch),
        "--nnodes": nodes if nodes > 1 else None,
        "--node-rank": "0" if nodes > 1 else None,
        "--master-addr": "NODE0" if nodes > 1 else None,
    }
    return launch.write(["vllm", "serve", launch.checkpoint], flags)


def _block(launch: Launch) -> int | None:
    """Sparse attention by blocks needs pages of whole blocks."""
    indexer = launch.deployment.model.indexer
    return indexer.block_size if indexer is not None and indexer.block_size else None


def _speculation(launch: Launch) -> str | None:
    tokens, held = launch.traffic.draft_tokens, launch.deployment.held
    if not tokens:
        return None
    if held.draft in _DRAFTS:
        told = {"method": "eagle3", "model": _DRAFTS[held.draft], "num_speculative_tokens": tokens}
    elif held.mtp:
        told = {"method": "mtp", "num_speculative_tokens": tokens}
    else:
        told = {"method": "ngram", "num_speculative_tokens": tokens}
    return json.dumps(told)
