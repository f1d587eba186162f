"""What stands where: GPU memory first, its rest as expert slots; host copies; files on drives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.cache import Scope
from moeprof.errors import InfeasibleError
from moeprof.hardware import Cluster
from moeprof.model import MoEModel, Precision, load_precision, weight_bytes
from moeprof.offload.rates import constant
from moeprof.result import Result

_ON_EVERY_GPU = ("router", "indexer", "norms")  # whole, however many GPUs share the rest
GIB = 1 << 30


@dataclass(frozen=True)
class TierMemory(Result):
    """Bytes of one tier by class, and their sum. A capacity of None: taken to be enough."""

    classes: Mapping[str, float] = field(hash=False)
    capacity_bytes: float | None
    total_bytes: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_bytes", sum(self.classes.values()))


@dataclass(frozen=True)
class OffloadMemory(Result):
    """The ledger of all tiers. `gpu` is all GPUs of the node together.

    `slots` experts of all layers fit in GPU memory beside the rest, and `used_slots` of them are
    in use; `host_slots` fit in host memory. `duplicate_bytes` of host memory are copies of experts
    that are on a GPU as well.
    """

    gpu: TierMemory
    host: TierMemory
    drive: TierMemory
    expert_bytes: float
    slots: int
    used_slots: int
    host_slots: int
    duplicate_bytes: float
    vram_bytes: float  # of each GPU

    @property
    def reads_drive(self) -> bool:
        """Whether host memory is too small for the experts it should hold."""
        return self.drive.total_bytes > 0


def plan_memory(
    model: MoEModel,
    cluster: Cluster,
    precision: str | Mapping[str, str] | Precision,
    *,
    vram_bytes: float,
    ram_bytes: float | None = None,
    context_tokens: int = 0,
    sequences: int = 1,
    kv_dtype: str = "bf16",
    scope: Scope = Scope.LAYER,
    exclusive: bool = False,
    whole_layers: bool = False,
) -> OffloadMemory:
    """Place everything: `vram_bytes` are of each GPU, `ram_bytes` of the host.

    Weights that are not routed experts, KV of `sequences` of `context_tokens` each and the reserve
    come first; whole experts take the rest, equally many of every layer unless the scope is global,
    or `whole_layers` of them. Every expert has a copy in host memory, unless
    `exclusive` leaves out those on the GPU; what does not fit there is read from the drives. Raises
    InfeasibleError, saying what is short, where that cannot be.
    """
    gpus = cluster.gpus_per_node
    sizes = weight_bytes(model, load_precision(precision, model))
    count = len(model.moe_layers) * model.experts
    each = sizes.pop("routed") / count
    classes: dict[str, float] = {
        name: size * (gpus if name in _ON_EVERY_GPU else 1) for name, size in sizes.items()
    }
    cache = model.cache_bytes_per_sequence_per_rank(context_tokens, gpus, kv_dtype, kv_dtype)
    classes["kv"] = sequences * cache * gpus
    classes["reserve"] = gpus * constant("reserve_bytes", cluster.profile.name).value
    free = gpus * vram_bytes - sum(classes.values())
    if free < 0:
        raise InfeasibleError(
            f"{model.name} beside its experts takes {sum(classes.values()) / GIB:.1f} GiB of GPU "
            f"memory, {-free / GIB:.1f} GiB more than there is: give more --vram, a shorter "
            "--context or a smaller --precision"
        )
    slots = min(int(free // each), count)
    unit = 1 if scope is Scope.GLOBAL else len(model.moe_layers)
    unit = model.experts if whole_layers else unit
    used = slots // unit * unit
    classes["experts"] = used * each
    needed = count - used * exclusive
    host_slots = _host_slots(model, cluster, each, needed, ram_bytes)
    spilled = host_slots < needed
    on_host: dict[str, float] = {"experts": min(host_slots, needed) * each}
    if ram_bytes is not None:
        on_host["reserve"] = constant("host_reserve_bytes").value
    return OffloadMemory(
        gpu=TierMemory({k: v for k, v in classes.items() if v}, gpus * vram_bytes),
        host=TierMemory(on_host, ram_bytes),
        drive=TierMemory({"experts": count * each * spilled}, None),
        expert_bytes=each,
        slots=slots,
        used_slots=used,
        host_slots=count if not spilled and not exclusive else host_slots,
        duplicate_bytes=0.0 if exclusive else min(used, host_slots) * each,
        vram_bytes=vram_bytes,
    )


def _host_slots(
    model: MoEModel, cluster: Cluster, each: float, needed: int, ram_bytes: float | None
) -> int:
    """Experts that host memory holds. Raises InfeasibleError where the rest has no drive."""
    if ram_bytes is None:
        return needed
    reserve = constant("host_reserve_bytes").value
    slots = max(0, int((ram_bytes - reserve) // each))
    if slots < needed and cluster.drive is None:
        raise InfeasibleError(
            f"the experts of {model.name} take {needed * each / GIB:.1f} GiB of host memory, and "
            f"of {ram_bytes / GIB:.1f} GiB the system leaves {slots * each / GIB:.1f}: give more "
            f"--ram, a smaller --precision, or a drive to read from: {cluster.name}+nvme-gen4-x4"
        )
    return min(slots, needed)
