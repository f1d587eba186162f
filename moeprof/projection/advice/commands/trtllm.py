"""TensorRT-LLM: `trtllm-serve`, with a YAML file for what has no flag."""

from __future__ import annotations

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand

_FILE = "extra-llm-api-options.yaml"


def write(launch: Launch) -> LaunchCommand:
    """`--tp_size` counts all ranks of a stage; attention data parallel is all of them or none."""
    deployment, split = launch.deployment, launch.deployment.parallelism
    start = ["trtllm-serve", launch.checkpoint]
    if deployment.cluster.nodes > 1:
        start = ["trtllm-llmapi-launch", *start]
    flags = {
        "--tp_size": split.stage_ranks,
        "--pp_size": split.pp if split.pp > 1 else None,
        "--ep_size": split.ep,
        "--max_batch_size": launch.requests,
        "--max_seq_len": launch.context,
        "--kv_cache_free_gpu_memory_fraction": launch.utilization,
        "--extra_llm_api_options": _FILE,
    }
    return launch.write(start, flags, {_FILE: _options(launch)})


def _options(launch: Launch) -> str:
    deployment = launch.deployment
    indexed = deployment.model.indexer is not None
    lines = [f"enable_attention_dp: {str(deployment.parallelism.dp > 1).lower()}"]
    lines += ["kv_cache_config:", f"  dtype: {'fp8' if deployment.kv_dtype == 'fp8' else 'auto'}"]
    if indexed:  # as the deployment guide of MiniMax-M3 asks for
        lines.append("  enable_block_reuse: false")
    return "\n".join([*lines, *_speculation(launch)]) + "\n"


def _speculation(launch: Launch) -> list[str]:
    tokens = launch.traffic.draft_tokens
    if not tokens:
        return []
    kind, length = "NGram", "max_draft_len"
    if launch.draft is not None:
        kind = "Eagle3"
    elif launch.deployment.held.mtp:
        kind, length = "MTP", "num_nextn_predict_layers"
    told = ["speculative_config:", f"  decoding_type: {kind}", f"  {length}: {tokens}"]
    return told + ([] if launch.draft is None else [f"  speculative_model: {launch.draft}"])
