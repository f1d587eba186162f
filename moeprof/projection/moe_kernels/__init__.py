"""Time of the routed experts' kernels, one layer on one rank.

    >>> from moeprof.projection.moe_kernels import M3_SHAPE, moe_kernel_seconds
    >>> moe_kernel_seconds("b200", "vllm", "nvfp4", M3_SHAPE, 32, 82, 128).quantity

What a step costs depends on what a rank reads and computes, not on a routing's name: the distinct
experts that get a row, the rows in all, and the tokens that pass. So these are the arguments, as
scalars or arrays, and `analysis`, `placement` or a routing model supplies them.

- `tables.py`: 62,100 timings of MiniMax-M3's shape on six systems, three engines and seven kernels
  (`data/`), read by distinct experts and load: `measured`.
- `law.py`: six constants a group, where a table has no such cell or the shape is another: `fitted`.
- `groups.py`: on hardware, engines or formats without a table, the datasheet's bandwidth and peak
  with constants borrowed from the devices that run the kernel, the nearer in both the heavier
  (without that kernel: one of the engine, with weights as narrow): `assumed`, with the band that
  leaving out whole systems gives. A new device needs its profile and nothing else.
- `timed_routings.py`: what the routings that tables name (`power_law_1.01`) mean for a rank;
  `timed_kernel_seconds` predicts such a row, for comparison.

`docs/validation/moe_kernels.md` has the errors of all of it, for every group.
"""

from moeprof.projection.moe_kernels.estimate import (
    KernelSeconds,
    moe_kernel_seconds,
    timed_kernel_seconds,
)
from moeprof.projection.moe_kernels.groups import KernelGroup, kernel_groups
from moeprof.projection.moe_kernels.timed_routings import RankDraw, draw_timed_rank
from moeprof.projection.moe_kernels.work import M3_SHAPE, ExpertShape

__all__ = [
    "M3_SHAPE",
    "ExpertShape",
    "KernelGroup",
    "KernelSeconds",
    "RankDraw",
    "draw_timed_rank",
    "kernel_groups",
    "moe_kernel_seconds",
    "timed_kernel_seconds",
]
