"""Which constants and bands hold: those of the group itself, or of the most similar one timed.

Constants stand in `kernels.toml` beside this file, a table a group; `benchmarks/moe_kernels.py`
fits them and writes the file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware import HardwareProfile, load_profile
from moeprof.model.formats import weight_format
from moeprof.projection.moe_kernels.law import LawConstants, Peaks
from moeprof.projection.moe_kernels.tables import Group
from moeprof.quantity import Provenance

FEW_TOKENS = 512  # bands are kept apart below and above


@dataclass(frozen=True)
class Band:
    """Factors on a time between which 80 % of unseen ones lie, for few tokens and for many."""

    few: tuple[float, float]
    many: tuple[float, float]


@dataclass(frozen=True)
class KernelGroup:
    """One kernel on one system, as timed: constants of the law, bands of law and table."""

    hardware: str
    engine: str
    kernel: str
    dtype: str
    version: str
    constants: LawConstants
    law_band: Band
    table_band: Band

    @property
    def name(self) -> str:
        """How tables and sources call it."""
        return f"{self.hardware} {self.engine} {self.version} {self.kernel} {self.dtype}"


@dataclass(frozen=True)
class Match:
    """The group whose constants are used, and how far it is from what was asked."""

    group: KernelGroup
    provenance: Provenance
    band: Band


@cache
def _file() -> dict[str, Any]:
    text = files("moeprof.projection.moe_kernels").joinpath("kernels.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def kernel_groups() -> tuple[KernelGroup, ...]:
    """All groups that were timed; of one engine and format, the engine's default comes first."""
    return tuple(
        KernelGroup(
            **{name: entry[name] for name in ("hardware", "engine", "kernel", "dtype", "version")},
            constants=LawConstants(**entry["law"]),
            law_band=_band(entry["law_band"]),
            table_band=_band(entry["table_band"]),
        )
        for entry in _file()["group"]
    )


def _band(entry: dict[str, list[float]]) -> Band:
    return Band(few=_ends(entry["few"]), many=_ends(entry["many"]))


def _ends(ends: list[float]) -> tuple[float, float]:
    return ends[0], ends[1]


def peaks_of(hardware: str | HardwareProfile, dtype: str) -> Peaks:
    """Datasheet figures for weights in `dtype`.

    Weights of 4 bits are computed in FP4 where the device has it (NVFP4) and in BF16 otherwise, as
    kernels that only store weights so do; FP8 in FP8 where it has that.
    """
    profile = load_profile(hardware) if isinstance(hardware, str) else hardware
    stored = weight_format(dtype)
    computed = "bf16"
    for name, figure in (("nvfp4", "fp4"), ("fp8", "fp8"), ("mxfp8", "fp8")):
        if stored.name.startswith(name) and f"dense_tflops_{figure}" in profile.figures:
            computed = figure
    return Peaks(
        bytes_per_s=profile.memory_bandwidth.value,
        flop_per_s=profile.dense_tflops(computed).value * 1e12,
        weight_bytes=stored.bits_per_weight / 8,
    )


def find_group(
    hardware: HardwareProfile, engine: str, dtype: str, kernel: str | None = None
) -> Match:
    """The group itself, `fitted`; or, `assumed`, the most similar one.

    Similar is first the kernel, then the engine, then the width of weights, then the device whose
    memory is nearest in speed. Without `kernel`, it is the one that the engine took there, or took
    on the nearest device. Raises InputError on an unknown kernel.
    """
    stored = weight_format(dtype)
    groups = kernel_groups()
    if kernel is not None and kernel not in {group.kernel for group in groups}:
        known = ", ".join(dict.fromkeys(group.kernel for group in groups))
        raise InputError(f"no MoE kernel '{kernel}' was timed; known: {known}")
    own = [
        group
        for group in groups
        if (group.hardware, group.engine, group.dtype) == (hardware.name, engine, stored.name)
        and kernel in (None, group.kernel)
    ]
    if own:
        return Match(own[0], Provenance.FITTED, own[0].law_band)
    donors = {(g.hardware, g.engine, g.kernel, g.dtype): g for g in groups}
    donor = donors[most_similar(donors, hardware, engine, stored.name, kernel)]
    return Match(donor, Provenance.ASSUMED, _band(_file()["assumed_band"]))


def most_similar(
    groups: Iterable[Group],
    hardware: HardwareProfile,
    engine: str,
    dtype: str,
    kernel: str | None,
) -> Group:
    """The one of `groups` whose constants stand in for one that is not among them."""
    speed = hardware.memory_bandwidth.value

    def distance(group: Group) -> tuple[bool, bool, bool, float]:
        device = load_profile(group[0]).memory_bandwidth.value
        return (
            kernel is not None and group[2] != kernel,
            group[1] != engine,
            _is_narrow(group[3]) != _is_narrow(dtype),
            abs(math.log(device / speed)),
        )

    return min(groups, key=distance)


def _is_narrow(dtype: str) -> bool:
    """Weights of some 4 bits, whose kernels unpack them, and not of 8 or more."""
    return weight_format(dtype).bits_per_weight < 6
