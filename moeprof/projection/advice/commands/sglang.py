"""SGLang: `python -m sglang.launch_server`."""

from __future__ import annotations

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand

START = ["python", "-m", "sglang.launch_server"]
_KV = {"bf16": "auto", "fp8": "fp8_e4m3"}


def write(launch: Launch) -> LaunchCommand:
    """`--tp-size` counts all ranks of a stage; with attention data parallel `--dp-size` of its
    groups lie within it. `--max-running-requests` is of all groups."""
    deployment, split = launch.deployment, launch.deployment.parallelism
    nodes = deployment.cluster.nodes
    shared = bool(deployment.model.experts) and split.dp > 1  # groups share the experts
    flags = {
        "--model-path": launch.checkpoint,
        "--tp-size": split.stage_ranks if shared else split.tp,
        "--pp-size": split.pp if split.pp > 1 else None,
        "--dp-size": split.dp if split.dp > 1 else None,
        "--enable-dp-attention": shared,
        "--ep-size": split.ep if launch.expert_parallel else None,
        "--enable-eplb": deployment.held.redundant > 0,
        "--ep-num-redundant-experts": deployment.held.redundant or None,
        "--max-running-requests": launch.traffic.concurrency,
        "--context-length": launch.context,
        "--kv-cache-dtype": _KV.get(deployment.kv_dtype, deployment.kv_dtype),
        "--mem-fraction-static": deployment.held.utilization,
        **_speculation(launch),
        "--nnodes": nodes if nodes > 1 else None,
        "--node-rank": "0" if nodes > 1 else None,
        "--dist-init-addr": "NODE0:50000" if nodes > 1 else None,
    }
    return launch.write(START, flags)


def _speculation(launch: Launch) -> dict[str, object]:
    """A draft model, the model's own modules, or else what stood in the context before."""
    tokens, held = launch.traffic.draft_tokens, launch.deployment.held
    if not tokens:
        return {}
    if launch.draft is None and not held.mtp:
        return {"--speculative-algorithm": "NGRAM", "--speculative-num-draft-tokens": tokens + 1}
    return {
        "--speculative-algorithm": "NEXTN" if launch.draft is None else "EAGLE3",
        "--speculative-draft-model-path": launch.draft,
        "--speculative-num-steps": tokens,
        "--speculative-eagle-topk": 1,
        "--speculative-num-draft-tokens": tokens + 1,
    }
