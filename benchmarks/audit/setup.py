"""One machine and model by the law, with the constants of `rates.toml`: misses go to the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from moeprof.offload.estimate import spread_misses
from moeprof.offload.rates import Speeds
from moeprof.offload.timing import step_seconds, time_layers
from moeprof.offload.work import DecodeWork

from .prediction import STREAM_OF_PEAK, stated
from .runs import Band, Shape


class Part(NamedTuple):
    """Seconds of a token: what the GPUs need with all experts, and what misses add to that."""

    gpu_s: float
    cpu_s: float

    @property
    def tok_s(self) -> float:
        """Of both together."""
        return 1 / (self.gpu_s + self.cpu_s)


@dataclass(frozen=True)
class Setup:
    """`gpu_rate` of all GPUs and `host` are peaks in bytes/s. `launches` names the constant of a
    layer's launches, `joined_s` is what several GPUs add to it.
    """

    shape: Shape
    expert_bits: float
    dense_bits: float
    gpu_rate: float
    host: Band
    launches: str = "layer_s"
    joined_s: float = 0.0

    def part(self, hits: float, end: str = "middle") -> Part:
        """At the hit ratio of one needed expert; misses of a layer are binomial."""
        shape = self.shape
        work = DecodeWork(
            layers=shape.layers,
            moe_layers=shape.moe_layers,
            expert_bytes=shape.expert_parameters * self.expert_bits / 8,
            dense_bytes=(shape.token_parameters + shape.head_parameters) * self.dense_bits / 8,
        )
        speeds = self._speeds(end)
        missed, whole = (shape.moe_layers * self._layer(work, speeds, at) for at in (hits, 1.0))
        return Part(whole + float(sum(step_seconds(work, speeds))), missed - whole)

    def tok_s(self, hits: float) -> Band:
        """Speed, and with the constants and the host all slow or all fast."""
        slow, middle, fast = (self.part(hits, end).tok_s for end in ("slow", "middle", "fast"))
        return Band(middle, slow, fast)

    def _layer(self, work: DecodeWork, speeds: Speeds, hits: float) -> float:
        experts, misses, weights = spread_misses(self.shape.top_k, hits)
        return float(time_layers(experts, misses, work, speeds, serve="cpu").seconds @ weights)

    def _speeds(self, end: str) -> Speeds:
        host = {"slow": self.host.low, "middle": self.host.value, "fast": self.host.high}[end]
        return Speeds(
            hbm=self.gpu_rate * stated("hbm_efficiency", end, rate=True),
            link=1.0,  # nothing is copied
            cpu=host * STREAM_OF_PEAK * stated("cpu_efficiency", end, rate=True),
            drive=None,
            copy_latency_s=0.0,
            drive_latency_s=0.0,
            drive_queue_depth=1.0,
            kernel_s=stated("kernel_s", end),
            layer_s=stated(self.launches, end) + self.joined_s,
            cpu_layer_s=stated("cpu_layer_s", end),
            step_s=stated("step_s", end),
        )
