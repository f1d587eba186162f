"""One deployment that is advised: what it is, how fast, at what cost, and how to start it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.projection.advice.commands import launch_command
from moeprof.projection.advice.ownership import energy_per_million, token_cost
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment
from moeprof.projection.parallelism import Parallelism
from moeprof.projection.speed import Speed
from moeprof.quantity import Quantity
from moeprof.result import NOT_JSON, Result


@dataclass(frozen=True)
class Option(Result):
    """A deployment with the most requests at a time at which it meets the targets.

    `sure` is whether the upper ends of the 80 % bands meet them too. `limit` says what keeps it
    from more requests: tpot, ttft, memory, or requests, where none did up to the most that were
    tried. `host_layers` is how many layers' experts stay in host memory, `gpu_experts` how many of
    each layer stand on GPUs where the others stay there; None where all do. `ttft_ms` is None
    where prompts were not projected; `share` is of an output token's time by operation.
    `cost_per_million_tokens` is in USD of output tokens at full load: by the hour, or of a machine
    that is bought, as its source says; None where nobody states a price.
    `energy_wh_per_million_tokens` takes all GPUs at their full power.
    """

    hardware: str
    gpus: int
    parallelism: Parallelism
    precision: str
    engine: str
    kv_dtype: str
    concurrency: int
    max_concurrency: int
    limit: str
    sure: bool
    tpot_ms: Quantity
    ttft_ms: Quantity | None
    output_tok_s: Quantity
    output_tok_s_per_gpu: float
    output_tok_s_per_user: float
    cost_per_million_tokens: Quantity | None
    energy_wh_per_million_tokens: Quantity | None
    familiarity: str
    free_bytes: float
    host_layers: int
    gpu_experts: int | None
    share: Mapping[str, float] = field(hash=False)
    command: str
    files: Mapping[str, str] = field(hash=False)
    flag_sources: Mapping[str, str] = field(hash=False)
    deployment: Deployment = field(repr=False, metadata=NOT_JSON)
    traffic: Traffic = field(repr=False, metadata=NOT_JSON)

    @property
    def rank(self) -> tuple[bool, float, int, float]:
        """Cheapest first; what has no price after all that has one, fewest GPUs first."""
        cost = self.cost_per_million_tokens
        return (cost is None, cost.value if cost else 0.0, self.gpus, -self.output_tok_s.value)


def make_option(
    deployment: Deployment,
    traffic: Traffic,
    speed: Speed,
    targets: LatencyTargets,
    *,
    max_concurrency: int,
    limit: str,
    free_bytes: float,
    context: int | None = None,
) -> Option:
    """An option from its projection; `context` is of the longest request, None: of all."""
    return build_option(
        deployment,
        traffic,
        (speed.tpot_ms, speed.ttft_ms, speed.output_tok_s),
        targets,
        max_concurrency=max_concurrency,
        limit=limit,
        familiarity=speed.familiarity,
        free_bytes=free_bytes,
        share=speed.share,
        context=context,
    )


def build_option(
    deployment: Deployment,
    traffic: Traffic,
    speeds: tuple[Quantity, Quantity | None, Quantity],
    targets: LatencyTargets,
    *,
    max_concurrency: int,
    limit: str,
    familiarity: str,
    free_bytes: float,
    host_layers: int = 0,
    gpu_experts: int | None = None,
    share: Mapping[str, float] | None = None,
    context: int | None = None,
) -> Option:
    """An option from `speeds`: TPOT, TTFT and output tokens/s."""
    launch = launch_command(
        deployment, traffic, host_layers=host_layers, gpu_experts=gpu_experts, context=context
    )
    cluster, (tpot, ttft, rate) = deployment.cluster, speeds
    return Option(
        hardware=cluster.name,
        gpus=cluster.gpus,
        parallelism=deployment.parallelism,
        precision=deployment.precision.name,
        engine=deployment.engine,
        kv_dtype=deployment.kv_dtype,
        concurrency=traffic.concurrency,
        max_concurrency=max_concurrency,
        limit=limit,
        sure=targets.miss(_upper(tpot), _upper(ttft)) <= 1,
        tpot_ms=tpot,
        ttft_ms=ttft,
        output_tok_s=rate,
        output_tok_s_per_gpu=rate.value / cluster.gpus,
        output_tok_s_per_user=1e3 / tpot.value,
        cost_per_million_tokens=token_cost(cluster, rate),
        energy_wh_per_million_tokens=energy_per_million(cluster, rate),
        familiarity=familiarity,
        free_bytes=free_bytes,
        host_layers=host_layers,
        gpu_experts=gpu_experts,
        share=share or {},
        command=launch.command,
        files=launch.files,
        flag_sources=launch.sources,
        deployment=deployment,
        traffic=traffic,
    )


def _upper(time: Quantity | None) -> float:
    """A time that nobody projected meets no target but none at all."""
    if time is None:
        return float("inf")
    return time.value if time.high is None else time.high
