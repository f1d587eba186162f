"""What is deployed: a model in a precision, on ranks of a cluster, by an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, Precision, load_model, load_precision
from moeprof.projection.memory import engine_names
from moeprof.projection.parallelism import Parallelism
from moeprof.result import Result

ENGINES = engine_names()
DEFAULT_ENGINE = "vllm"


@dataclass(frozen=True)
class Held(Result):
    """What GPUs hold beside one copy of the weights, or not at all: see `project_memory`."""

    utilization: float | None = None
    redundant: int = 0
    cache_slots: int | None = None
    ram_bytes: int | None = None
    draft: str | None = None
    mtp: bool = False


@dataclass(frozen=True)
class Deployment(Result):
    """One way to serve a model. `release` is the engine's version, where it is known; `pad_heads`
    allows a `tp` that does not divide the attention heads.
    """

    model: MoEModel
    cluster: Cluster
    precision: Precision
    parallelism: Parallelism
    engine: str = DEFAULT_ENGINE
    release: str | None = None
    kv_dtype: str = "bf16"
    index_dtype: str = "bf16"
    held: Held = field(default_factory=Held)
    pad_heads: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(f"engine '{self.engine}' is not one of {', '.join(ENGINES)}")
        self.parallelism.check_fits_shape(self.model, self.cluster.gpus, self.pad_heads)


def plan_deployment(
    model: MoEModel | str | Path,
    hardware: Cluster | str,
    *,
    precision: str | Mapping[str, str] | Precision = "bf16",
    tp: int | None = None,
    ep: int = 1,
    dp: int = 1,
    pp: int = 1,
    engine: str = DEFAULT_ENGINE,
    release: str | None = None,
    kv_dtype: str = "bf16",
    index_dtype: str = "bf16",
    held: Held | None = None,
    pad_heads: bool = False,
) -> Deployment:
    """A deployment from what a user writes.

    `tp` is all GPUs over `dp` x `pp` if None. Raises InputError, one line, for what cannot be.
    """
    loaded, cluster = load_model(model), load_hardware(hardware)
    for name, value in (("dp", dp), ("pp", pp)):
        if value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    each = max(1, cluster.gpus // (dp * pp)) if tp is None else tp
    return Deployment(
        model=loaded,
        cluster=cluster,
        precision=load_precision(precision, loaded),
        parallelism=Parallelism(each, ep, dp, pp),
        engine=engine,
        release=release or None,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        held=held or Held(),
        pad_heads=pad_heads,
    )
