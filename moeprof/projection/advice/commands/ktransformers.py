"""KTransformers: SGLang with the experts of `kt-kernel` on the CPU."""

from __future__ import annotations

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand
from moeprof.projection.advice.commands.sglang import START
from moeprof.projection.advice.formats import most_weights

_METHODS = {"bf16": "BF16", "fp8": "FP8_PERCHANNEL", "fp8_block": "FP8", "int4": "RAWINT4"}
_THREADS = 64  # of the tutorial; about 90 % of the physical cores


def write(launch: Launch) -> LaunchCommand:
    """`--kt-num-gpu-experts` is of each layer; the others stay in host memory."""
    deployment = launch.deployment
    model = deployment.model
    on_gpus = model.experts if launch.gpu_experts is None else launch.gpu_experts
    weights = most_weights(deployment.precision, deployment.model).name
    flags = {
        "--model-path": launch.checkpoint,
        "--kt-weight-path": launch.checkpoint,
        "--kt-method": _METHODS.get(weights, weights.upper()),
        "--kt-cpuinfer": _THREADS,
        "--kt-threadpool-count": 2,
        "--kt-num-gpu-experts": str(on_gpus),
        "--tp-size": deployment.parallelism.tp,
        "--max-running-requests": launch.traffic.concurrency,
        "--context-length": launch.context,
    }
    return launch.write(START, flags)
