"""What one GiB more of memory on each GPU is worth: as cache slots, as KV, as redundant experts.

A use takes whole units: as many as one GiB holds, or one where a unit is larger, and its gain in
tokens/s is divided by the GiB that these take. So a redundant expert of every layer, 6 GiB of
MiniMax-M3 in BF16, and a sequence of 20 MiB stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel
from moeprof.offload import plan_offload
from moeprof.offload.memory import GIB
from moeprof.projection.routing.speeds import tok_s_of
from moeprof.projection.routing.step_load import RoutingModel, Seconds
from moeprof.quantity import Provenance
from moeprof.result import Result
from moeprof.trace import Trace

# (bytes more on each GPU, sequences) -> tokens/s with experts below GPU memory: see plan_offload
OffloadedSpeed = Callable[[float, int], float]


@dataclass(frozen=True)
class GibUse(Result):
    """One use of the memory. `added` counts `unit`, which take `added_bytes` on each GPU."""

    use: str  # cache, kv or redundancy
    added: int
    unit: str
    added_bytes: float
    tok_s_before: float
    tok_s_after: float
    tok_s_per_gib: float
    provenance: Provenance  # of the routing it rests on


@dataclass(frozen=True)
class GibValue(Result):
    """Uses, best first. `missing` says why a use is not among them."""

    uses: list[GibUse]
    missing: Mapping[str, str] = field(hash=False)
    sequences: int
    ranks: int


def value_of_gib(
    routing: RoutingModel,
    seconds: Seconds | None = None,
    *,
    sequences: int,
    ranks: int,
    kv_bytes_per_sequence: float,
    placed: Callable[[int], RoutingModel] | None = None,
    slot_bytes: float | None = None,
    offloaded: OffloadedSpeed | None = None,
) -> GibValue:
    """A GiB more beside a decode step of `sequences`, which take all the KV that there is.

    `kv_bytes_per_sequence` is what one more sequence of the step takes on a GPU, mean over GPUs.
    With every expert on a GPU, `seconds` is of a step, `placed` gives the routing with that many
    redundant slots a rank, and `slot_bytes` is one such slot of every MoE layer. With experts
    below GPU memory, `offloaded` gives the speed instead, and a GiB may be cache. More sequences
    are taken to be waiting.

    Raises InputError where neither is given, or a size is not positive.
    """
    for name, size in (
        ("kv_bytes_per_sequence", kv_bytes_per_sequence),
        ("slot_bytes", slot_bytes),
    ):
        if size is not None and not size > 0:
            raise InputError(f"{name} is {size}: more than 0 is needed")
    kv_bytes = kv_bytes_per_sequence
    if offloaded is not None and seconds is None:
        found, missing = _offloaded(offloaded, routing, sequences, ranks, kv_bytes)
    elif seconds is not None and offloaded is None:
        found, missing = _resident(routing, seconds, sequences, ranks, kv_bytes, placed, slot_bytes)
    else:
        raise InputError("give seconds of a step, or the speed with experts offloaded: one of them")
    found.sort(key=lambda use: -use.tok_s_per_gib)
    return GibValue(found, missing, sequences, ranks)


def offloaded_speed(
    trace: Trace,
    model: MoEModel | str | Path,
    hardware: Cluster | str,
    *,
    vram_bytes: float,
    **options: Any,
) -> OffloadedSpeed:
    """Tokens/s by `plan_offload` with `options`, requests of `trace` batched anew.

    What is raised when it is called is as `plan_offload` says.
    """

    def speed(more: float, sequences: int) -> float:
        plan = plan_offload(
            trace,
            model,
            hardware,
            vram_bytes=vram_bytes + more,
            max_num_seqs=sequences,
            **options,
        )
        return plan.tok_s

    return speed


def _offloaded(
    speed: OffloadedSpeed, routing: RoutingModel, sequences: int, ranks: int, kv_bytes: float
) -> tuple[list[GibUse], dict[str, str]]:
    provenance = routing.load(sequences, ranks).provenance
    before, more = speed(0.0, sequences), whole_units(kv_bytes)
    cached = speed(float(GIB), sequences)
    widened = speed(more * kv_bytes, sequences + more)
    uses = [
        gib_use("cache", 1, "GiB of slots", GIB, before, cached, provenance),
        gib_use("kv", more, "sequence", more * kv_bytes, before, widened, provenance),
    ]
    return uses, {"redundancy": "experts are below GPU memory: a copy more is one resident less"}


def _resident(
    routing: RoutingModel,
    seconds: Seconds,
    sequences: int,
    ranks: int,
    kv_bytes: float,
    placed: Callable[[int], RoutingModel] | None,
    slot_bytes: float | None,
) -> tuple[list[GibUse], dict[str, str]]:
    missing = {"cache": "every expert is in GPU memory: there is nothing to cache"}
    load = routing.load(sequences, ranks)
    before, more = tok_s_of(routing, sequences, ranks, seconds), whole_units(kv_bytes)
    after = tok_s_of(routing, sequences + more, ranks, seconds)
    wider = routing.load(sequences + more, ranks).provenance
    uses = [gib_use("kv", more, "sequence", more * kv_bytes, before, after, wider)]
    if ranks == 1:
        missing["redundancy"] = "one rank holds every expert: it has nobody to share with"
    elif placed is None or slot_bytes is None:
        missing["redundancy"] = "no placement with redundant experts was given"
    else:
        slots = whole_units(slot_bytes)
        after = tok_s_of(placed(slots), sequences, ranks, seconds)
        unit = "redundant slot"
        size = slots * slot_bytes
        # Against a map without redundancy, or what the map itself buys would be counted too.
        before = tok_s_of(placed(0), sequences, ranks, seconds)
        uses.append(gib_use("redundancy", slots, unit, size, before, after, load.provenance))
    return uses, missing


def whole_units(size: float) -> int:
    """How many of `size` bytes a GiB holds, one at least."""
    return max(int(GIB / size), 1)


def gib_use(
    use: str,
    added: int,
    unit: str,
    added_bytes: float,
    before: float,
    after: float,
    provenance: Provenance,
) -> GibUse:
    """A use of `added_bytes` on each GPU, and its gain a GiB."""
    gain = (after - before) / (added_bytes / GIB)
    return GibUse(use, added, unit, added_bytes, before, after, gain, provenance)
