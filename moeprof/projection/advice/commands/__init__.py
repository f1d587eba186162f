"""An engine's own command line for a deployment, and the file that it reads, if one is needed.

One engine a file. Every flag is listed with the page that documents it in `engines.toml`.
"""

from __future__ import annotations

from moeprof.projection.advice.commands import ktransformers, llamacpp, mlx, sglang, trtllm, vllm
from moeprof.projection.advice.commands.launch import Launch, LaunchCommand
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment

_WRITERS = {
    "vllm": vllm.write,
    "sglang": sglang.write,
    "trtllm": trtllm.write,
    "llamacpp": llamacpp.write,
    "ktransformers": ktransformers.write,
    "mlx": mlx.write,
}


def launch_command(
    deployment: Deployment,
    traffic: Traffic,
    *,
    host_layers: int = 0,
    gpu_experts: int | None = None,
    context: int | None = None,
) -> LaunchCommand:
    """How to start `deployment` for `traffic`.

    `host_layers` is how many layers' experts stay in host memory (llama.cpp), `gpu_experts` how
    many experts of each layer stand on GPUs (KTransformers), None: all. `context` is how long the
    longest request may be, None: as long as those of `traffic`. Of several nodes it is the command
    of the first; NODE0 stands for its address.
    """
    launch = Launch(deployment, traffic, host_layers, gpu_experts, context)
    return _WRITERS[deployment.engine](launch)


__all__ = ["Launch", "LaunchCommand", "launch_command"]
