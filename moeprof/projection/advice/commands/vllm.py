"""vLLM: `vllm serve`."""

from __future__ import annotations

import json

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand


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
    tokens = launch.traffic.draft_tokens
    if not tokens:
        return None
    told: dict[str, object] = {"method": "ngram"}
    if launch.draft is not None:
        told = {"method": "eagle3", "model": launch.draft}
    elif launch.deployment.held.mtp:
        told = {"method": "mtp"}
    return json.dumps({**told, "num_speculative_tokens": tokens})
