"""One line of a plan: memory placed, the trace replayed, its misses timed and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moeprof.cache import Scope
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, Precision
from moeprof.offload.bound import least_seconds
from moeprof.offload.estimate import summarise
from moeprof.offload.memory import OffloadMemory, plan_memory
from moeprof.offload.rates import Rates
from moeprof.offload.results import OffloadRow
from moeprof.offload.stepping import StepTimes, time_steps
from moeprof.offload.timing import Service
from moeprof.offload.traffic import Recording, Traffic, least_misses, replay_traffic
from moeprof.offload.transfer import blend, carry_over, near_slots, scaled_slots
from moeprof.offload.whole_layers import WHOLE_LAYERS, keep_layers, place_layers
from moeprof.offload.work import DecodeWork, decode_work


class Job(NamedTuple):
    """What all lines of one plan share."""

    recording: Recording
    model: MoEModel
    cluster: Cluster
    precision: Precision
    rates: Rates
    scope: Scope
    contract: str
    service: Service
    carried: bool  # the trace is of another shape than the model
    ram_bytes: float | None
    context_tokens: int
    kv_dtype: str
    exclusive: bool
    seed: int

    @property
    def pooled(self) -> bool:
        """Whether all layers share their slots."""
        return self.scope is Scope.GLOBAL

    @property
    def sequences(self) -> int:
        """Requests that are given room for KV."""
        if self.recording.max_num_seqs is not None:
            return self.recording.max_num_seqs
        return int(self.recording.requests.max(initial=1))

    def slots_of(self, memory: OffloadMemory) -> int:
        """Slots as they are told: in all for scope global, else a layer."""
        return memory.used_slots // (1 if self.pooled else len(self.model.moe_layers))

    def recorded_slots(self, slots: int, pooled: bool) -> int:
        """`slots` of the model as the same share of the recorded model's experts."""
        return (
            scaled_slots(slots, self.recording.trace, self.model, pooled) if self.carried else slots
        )

    def most_recorded_slots(self, slots: int) -> int:
        """The same of all layers together and rounded up, for a bound."""
        if not self.carried:
            return slots
        return near_slots(slots, self.recording.trace, self.model, True)[1]


class Line(NamedTuple):
    """A row, and what it was computed from."""

    row: OffloadRow
    memory: OffloadMemory
    traffic: Traffic
    work: DecodeWork


def plan_rows(job: Job, policies: Sequence[str], vram_bytes: float) -> list[Line]:
    """A line for every policy at one size of GPU memory."""
    found: list[tuple[str, OffloadMemory, Traffic]] = []
    cached = [name for name in policies if name != WHOLE_LAYERS]
    if cached:
        memory = _placed(job, vram_bytes)
        traffics = _replayed(job, cached, memory)
        found += [(name, memory, traffic) for name, traffic in traffics.items()]
    if WHOLE_LAYERS in policies:
        memory = _placed(job, vram_bytes, whole_layers=True)
        first = found[0][2].fit_steps if found else job.recording.first
        found.append((WHOLE_LAYERS, memory, _by_layers(job, memory, first)))
    least = _least_ratios(job, found[0][1], found[0][2])
    lines = []
    for name, memory, recorded in found:
        traffic = _carried(job, name, memory, recorded)
        work = _work(job, traffic)
        lines.append(Line(_row(job, name, memory, traffic, work, least), memory, traffic, work))
    return lines


def _placed(job: Job, vram_bytes: float, whole_layers: bool = False) -> OffloadMemory:
    return plan_memory(
        job.model,
        job.cluster,
        job.precision,
        vram_bytes=vram_bytes,
        ram_bytes=job.ram_bytes,
        context_tokens=job.context_tokens,
        sequences=job.sequences,
        kv_dtype=job.kv_dtype,
        scope=job.scope,
        exclusive=job.exclusive,
        whole_layers=whole_layers,
    )


def _replayed(job: Job, policies: Sequence[str], memory: OffloadMemory) -> dict[str, Traffic]:
    """The traffic of each policy; of a carried recording, between the two nearest sizes."""
    slots = job.slots_of(memory)
    around, weight = [slots], 0.0
    if job.carried:
        *around, weight = near_slots(slots, job.recording.trace, job.model, job.pooled)
    sizes = around if weight else around[:1]
    replayed = [
        replay_traffic(
            job.recording,
            policies,
            slots=size,
            host_slots=_host_slots(job, memory),
            scope=job.scope,
            contract=job.contract,
            seed=job.seed,
        )
        for size in sizes
    ]
    if not weight:
        return replayed[0]
    fewer, more = replayed
    return {name: blend(fewer[name], more[name], weight) for name in fewer}


def _by_layers(job: Job, memory: OffloadMemory, first: int) -> Traffic:
    layers = memory.used_slots // job.model.experts
    recorded = len(job.recording.trace.layers)
    here = round(layers * recorded / len(job.model.moe_layers))
    return place_layers(job.recording, first, here, _host_slots(job, memory))


def _carried(job: Job, policy: str, memory: OffloadMemory, recorded: Traffic) -> Traffic:
    if not job.carried:
        return recorded
    traffic = carry_over(recorded, job.recording.trace, job.model)
    if policy != WHOLE_LAYERS:
        return traffic
    return keep_layers(traffic, memory.used_slots // job.model.experts)


def _host_slots(job: Job, memory: OffloadMemory) -> int | None:
    """Experts of the recorded model that host memory holds; None: all of them."""
    return job.recorded_slots(memory.host_slots, True) if memory.reads_drive else None


def mean_position(recording: Recording) -> int | None:
    """How far the recording's tokens are into their requests; None where it does not say."""
    inside = recording.trace.position[recording.trace.phase == recording.phase]
    known = inside[inside >= 0]
    return int(known.mean()) if len(known) else None


def _work(job: Job, traffic: Traffic) -> DecodeWork:
    """Of a mean step: as many requests, and as far into them, as the recording's."""
    reached = mean_position(job.recording)
    reached = job.context_tokens if reached is None else min(reached, job.context_tokens)
    work = decode_work(job.model, job.precision, context_tokens=reached, kv_dtype=job.kv_dtype)
    return work.with_sequences(traffic.sequences)


def _least_ratios(job: Job, memory: OffloadMemory, traffic: Traffic) -> tuple[float, float]:
    """(misses, drive reads) that no policy avoids, over all experts that are needed."""
    first, needed = traffic.fit_steps, max(int(traffic.needed.sum()), 1)
    slots = job.most_recorded_slots(memory.slots)
    misses = least_misses(job.recording, first, slots)
    if not memory.reads_drive:
        return misses / needed, 0.0
    both = slots + job.most_recorded_slots(memory.host_slots)
    return misses / needed, least_misses(job.recording, first, both) / needed


def _row(
    job: Job,
    policy: str,
    memory: OffloadMemory,
    traffic: Traffic,
    work: DecodeWork,
    least: tuple[float, float],
) -> OffloadRow:
    ends = ("slow", "middle", "fast")
    times = {end: time_steps(traffic, work, job.rates.at(end), job.service) for end in ends}
    steps, tokens = len(traffic.step_tokens), traffic.tokens
    estimate = summarise({end: t.shares / steps for end, t in times.items()}, tokens / steps)
    needed, missed = int(traffic.needed.sum()), int(traffic.missed.sum())
    limit = least_seconds(
        work,
        job.rates.at("middle"),
        steps=steps,
        needed=needed,
        misses=least[0] * needed,
        reads=least[1] * needed,
        serve=job.service.serve,
    )
    return OffloadRow(
        policy=policy,
        vram_bytes=memory.vram_bytes,
        slots=job.slots_of(memory),
        resident_layers=memory.used_slots // job.model.experts if policy == WHOLE_LAYERS else None,
        resident=memory.used_slots / (len(job.model.moe_layers) * job.model.experts),
        hit_ratio=1 - missed / max(needed, 1),
        misses_per_token=missed / tokens,
        drive_reads_per_token=float(traffic.stored.sum()) / tokens,
        bytes_per_token=_moved(traffic, work, times["middle"]),
        tok_s=estimate.tok_s,
        tok_s_low=estimate.tok_s_low,
        tok_s_high=estimate.tok_s_high,
        tok_s_limit=tokens / limit,
        bound=estimate.bound,
        share=estimate.share,
        step_s=estimate.step_s,
    )


def _moved(traffic: Traffic, work: DecodeWork, times: StepTimes) -> dict[str, float]:
    """Bytes a token that each tier reads or moves."""
    steps, tokens = len(traffic.step_tokens), traffic.tokens
    on_cpu = int(traffic.missed.sum()) - times.copied
    whole = work.dense_bytes + work.kv_bytes + work.moe_layers * work.shared_bytes
    experts = {
        "gpu": int(traffic.needed.sum()) - on_cpu,
        "link": times.copied + times.loaded_behind,
        "cpu": on_cpu,
        "drive": int(traffic.stored.sum()),
    }
    moved = {name: count * work.expert_bytes / tokens for name, count in experts.items()}
    moved["gpu"] += whole * steps / tokens
    return moved
