"""llama.cpp: `llama-server`, with the experts of some layers in host memory where they must be."""

from __future__ import annotations

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand

_KV = {"bf16": "bf16", "fp16": "f16", "fp8": "q8_0", "q8_0": "q8_0", "q4_0": "q4_0"}


def write(launch: Launch) -> LaunchCommand:
    """`-c` is the context of all `-np` slots together. `-ncmoe N` counts layers from the first,
    those without experts too, so N is what brings `host_layers` layers' experts to the host."""
    deployment, requests = launch.deployment, launch.traffic.concurrency
    own = launch.checkpoint.startswith("./")
    flags = {
        "-m" if own else "-hf": launch.checkpoint + (".gguf" if own else ""),
        "-ngl": "99",
        "-ncmoe": counted_layers(launch) or None,
        "-c": launch.context * requests,
        "-np": requests,
        "-ctk": _KV[deployment.kv_dtype],
        "-ctv": _KV[deployment.kv_dtype],
        "-sm": "layer" if deployment.parallelism.pp > 1 else None,
        "-fit": "off" if launch.host_layers else None,
    }
    return launch.write(["llama-server"], flags)


def counted_layers(launch: Launch) -> int:
    """The N of `-ncmoe N`."""
    layers, hosted = launch.deployment.model.moe_layers, launch.host_layers
    return layers[hosted - 1] + 1 if hosted else 0


def override_pattern(launch: Launch) -> str:
    """What `-ot` takes for the same, with a pattern of one's own."""
    hosted = launch.deployment.model.moe_layers[: launch.host_layers]
    return rf"blk\.({'|'.join(map(str, hosted))})\.ffn_.*_exps\.=CPU"
