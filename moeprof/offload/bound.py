"""What no policy can beat: the fewest misses, and every resource busy all the time."""

from __future__ import annotations

from moeprof.offload.rates import Speeds
from moeprof.offload.timing import Serve, step_seconds
from moeprof.offload.work import DecodeWork


def least_seconds(
    work: DecodeWork,
    speeds: Speeds,
    *,
    steps: int,
    needed: float,
    misses: float,
    reads: float,
    serve: Serve,
) -> float:
    """Seconds under which `steps` with `needed` experts in all cannot end.

    At least `misses` of them are not on the GPU and `reads` not in host memory either. Weights,
    KV and launches are as they are; beyond that the GPU, the link or the CPU, and the drives are
    each at work without a pause. Where the CPU may compute, it shares all experts with the GPU as
    is best: both then end at the same time, or the CPU has the misses alone.
    """
    gpu, overhead = step_seconds(work, speeds, tokens=0)
    each = work.expert_bytes
    launches = steps * (overhead + work.moe_layers * speeds.kernel_s)
    shared = steps * (float(gpu) + work.moe_layers * work.shared_bytes / speeds.hbm)
    drive = 0.0 if speeds.drive is None else reads * each / speeds.drive
    if serve is Serve.COPY or speeds.cpu is None:
        lanes = [shared + needed * each / speeds.hbm, misses * each / speeds.link]
    else:
        # All experts are read at the GPU's and the host's rates together at best; misses cross the
        # link or are read by the CPU, both out of host memory.
        both = speeds.hbm + speeds.cpu
        lanes = [shared, (needed * each + shared * speeds.hbm) / both]
        lanes.append(misses * each / (speeds.link + speeds.cpu))
    return launches + max(*lanes, drive)
