"""MLX: `mlx_lm.server`, on one machine."""

from __future__ import annotations

from moeprof.projection.advice.commands.launch import Launch, LaunchCommand


def write(launch: Launch) -> LaunchCommand:
    """Its context grows with the request, so no length is told."""
    requests = launch.traffic.concurrency
    flags = {"--model": launch.checkpoint, "--decode-concurrency": requests}
    return launch.write(["mlx_lm.server"], flags)
