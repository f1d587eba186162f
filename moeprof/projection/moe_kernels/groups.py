"""Which constants and bands hold: those of the group itself, or of the most similar one timed.

Constants stand in `kernels.toml` beside this file, a table a group; `benchmarks/moe_kernels.py`
fits them and writes the file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import InputError
from moeprof.hardware import HardwareProfile, load_profile
from moeprof.model.formats import weight_format
from moeprof.projection.moe_kernels.law import LawConstants, Peaks
from moeprof.projection.moe_kernels.tables import Group
from moeprof.projection.moe_kernels.tiles import UNPACKING
from moeprof.quantity import Provenance

FEW_TOKENS = 512  # bands are kept apart below and above
_FP8 = ("fp8", "fp8_block", "mxfp8")
_SAME_SPEED = 0.1  # a distance between devices that says nothing
_NEAR = 0.2  # devices of one generation are nearer than that


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
    """The group whose constants are used, and how far it is from what was asked.

    `tiles` is the kernel whose tiles are taken (`tiles.py`).
    """

    group: KernelGroup
    provenance: Provenance
    band: Band
    tiles: str


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

    NVFP4 is computed in FP4 where the device has it and MXFP4 there in FP8, as its activations are;
    FP8 in FP8; all else, and all on devices without the units, in BF16 after unpacking.
    """
    profile = load_profile(hardware) if isinstance(hardware, str) else hardware
    stored = weight_format(dtype)
    return Peaks(
        bytes_per_s=profile.memory_bandwidth.value,
        flop_per_s=profile.dense_tflops(_computed_in(profile, stored.name)).value * 1e12,
        weight_bytes=stored.bits_per_weight / 8,
    )


def _computed_in(profile: HardwareProfile, dtype: str) -> str:
    has = {figure for figure in ("fp4", "fp8") if f"dense_tflops_{figure}" in profile.figures}
    if dtype == "nvfp4" and "fp4" in has:
        return "fp4"
    if (dtype == "mxfp4" and has == {"fp4", "fp8"}) or (dtype in _FP8 and "fp8" in has):
        return "fp8"
    return "bf16"


def find_group(
    hardware: HardwareProfile, engine: str, dtype: str, kernel: str | None = None
) -> Match:
    """The group itself, `fitted`; or, `assumed`, the most similar one with borrowed constants.

    Without `kernel`, it is the one that the engine took there, or takes on the nearest device
    (`borrow_constants`). Raises InputError on an unknown kernel.
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
        return Match(own[0], Provenance.FITTED, own[0].law_band, own[0].kernel)
    return _borrowed(hardware, engine, stored.name, kernel)


def _borrowed(hardware: HardwareProfile, engine: str, dtype: str, kernel: str | None) -> Match:
    groups = {(g.hardware, g.engine, g.kernel, g.dtype): g for g in kernel_groups()}
    fitted = {name: group.constants for name, group in groups.items()}
    nearest, constants = borrow_constants(fitted, hardware, engine, dtype, kernel)
    same = (engine, kernel or nearest[2], dtype) == nearest[1:]
    band = "assumed_near" if same and is_near(nearest, hardware) else "assumed_far"
    donor = replace(groups[nearest], constants=constants)
    unpacked = _is_narrow(dtype) and _computed_in(hardware, dtype) == "bf16"
    tiles = UNPACKING if unpacked and kernel is None else kernel or donor.kernel
    return Match(donor, Provenance.ASSUMED, _band(_file()[band]), tiles)


def is_near(group: Group, hardware: HardwareProfile) -> bool:
    """Whether the device of `group` is nearly the same: its maker's, and as fast."""
    same_maker = _profile(group[0]).vendor == hardware.vendor
    return same_maker and _distance(group, hardware) < _NEAR


def borrow_constants(
    fitted: Mapping[Group, LawConstants],
    hardware: HardwareProfile,
    engine: str,
    dtype: str,
    kernel: str | None,
) -> tuple[Group, LawConstants]:
    """Constants for a group that is not in `fitted`, and the group they mostly come from.

    Of the groups most alike, which are those of the kernel, or else of the engine, with weights of
    some 4 bits or of more as asked, the one on the nearest device settles the kernel. The constants
    are the geometric mean over all devices with that kernel, the nearer the heavier. Devices are
    near whose memory bandwidth and BF16 peak are alike.
    """

    def unlike(group: Group) -> tuple[bool, bool, bool]:
        other_kernel = kernel is not None and group[2] != kernel
        return other_kernel, group[1] != engine, _is_narrow(group[3]) != _is_narrow(dtype)

    nearest = min(fitted, key=lambda group: (unlike(group), _distance(group, hardware)))
    alike = [group for group in fitted if group[1:] == nearest[1:]]
    weights = [(_distance(group, hardware) + _SAME_SPEED) ** -2 for group in alike]
    logs = [
        sum(w * math.log(fitted[group][place]) for w, group in zip(weights, alike, strict=True))
        for place in range(len(LawConstants._fields))
    ]
    return nearest, LawConstants(*(math.exp(log / sum(weights)) for log in logs))


def _distance(group: Group, hardware: HardwareProfile) -> float:
    """How far apart two devices are in bandwidth and peak: the norm of both logarithms."""
    timed = _profile(group[0])
    bandwidth = timed.memory_bandwidth.value / hardware.memory_bandwidth.value
    peak = timed.dense_tflops("bf16").value / hardware.dense_tflops("bf16").value
    return math.hypot(math.log(bandwidth), math.log(peak))


@cache
def _profile(name: str) -> HardwareProfile:
    return load_profile(name)


def _is_narrow(dtype: str) -> bool:
    """Weights of some 4 bits, whose kernels unpack them, and not of 8 or more."""
    return weight_format(dtype).bits_per_weight < 6
