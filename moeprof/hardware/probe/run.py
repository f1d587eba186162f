"""Measure what this machine has, and say of the rest why it was not measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import InputError
from moeprof.hardware.figure import Figure
from moeprof.hardware.probe.drive import DEFAULT_BYTES, drive_title, probe_drive
from moeprof.hardware.probe.gpu import FoundGpu, find_gpus, probe_copies, torch_device
from moeprof.hardware.probe.machine import (
    cpu_count,
    cpu_name,
    load_per_cpu,
    memory_bytes,
    slug,
)
from moeprof.hardware.probe.measurement import NotMeasuredError, reported
from moeprof.hardware.probe.memory import probe_memory
from moeprof.hardware.probe.products import find_torch, probe_numpy, probe_torch
from moeprof.hardware.profile import HardwareProfile, Kind
from moeprof.hardware.profile_writing import check_target, write_machine
from moeprof.result import Result

STEPS = ("memory", "gemm", "drive", "gpu")
Stage = Callable[[str], AbstractContextManager[object]]
_SECONDS = 1.0
_BUSY = 0.5  # of a CPU


@dataclass(frozen=True)
class ProbedPart(Result):
    """A device of this machine, and how many of it there are."""

    profile: HardwareProfile
    count: int = 1


@dataclass(frozen=True)
class HardwareProbe(Result):
    """What was found, what was not measured and why, and the file it was written to.

    `load_per_cpu` is what else ran in the minute before: above one half the rates are this
    machine's under that load, not its own.
    """

    parts: list[ProbedPart]
    missing: Mapping[str, str] = field(hash=False)
    path: str | None = None
    load_per_cpu: float | None = None

    @property
    def warning(self) -> str:
        """A sentence where the machine was too busy to be measured well, else nothing."""
        if self.load_per_cpu is None or self.load_per_cpu <= _BUSY:
            return ""
        return (
            f"this machine was busy, load {self.load_per_cpu:.1f} a CPU before the probe: "
            "its rates may be higher"
        )


def probe_hardware(
    output: str | Path | None = None,
    *,
    seconds: float = _SECONDS,
    skip: Collection[str] = (),
    drive_folder: str | Path | None = None,
    drive_bytes: int = DEFAULT_BYTES,
    array_bytes: int | None = None,
    force: bool = False,
    stage: Stage = nullcontext,
) -> HardwareProbe:
    """Measure this machine, each figure for about `seconds`, into the TOML file `output` if given.

    `skip` leaves out steps (memory, gemm, drive, gpu). The drive is the one that holds
    `drive_folder`, by default the output's folder, where a file of `drive_bytes` is written and
    removed; `array_bytes` is the size of each of the three arrays of the memory step. Raises
    InputError for values out of range, and for an `output` that exists without `force`.
    """
    _check(seconds, skip, drive_bytes, array_bytes)
    if output is not None:
        check_target(Path(output), force=force)
    folder = Path(drive_folder or (Path(output).parent if output else "."))
    load = load_per_cpu()
    probe = _Probe(seconds, frozenset(skip), stage, {})
    parts = [
        ProbedPart(probe.host(array_bytes)),
        *probe.gpus(),
        *probe.drive(folder, drive_bytes),
    ]
    result = HardwareProbe(parts, probe.missing, None if output is None else str(output), load)
    if output is not None:
        write_machine([(p.profile, p.count) for p in parts], Path(output), note=result.warning)
    return result


def _check(
    seconds: float, skip: Collection[str], drive_bytes: int, array_bytes: int | None
) -> None:
    if not 0 < seconds <= 3600:  # also refuses NaN
        raise InputError(f"seconds is {seconds}, it must be above 0 and at most 3600")
    if unknown := [step for step in skip if step not in STEPS]:
        raise InputError(f"no step is called '{unknown[0]}': {', '.join(STEPS)}")
    for name, size in (("drive_bytes", drive_bytes), ("array_bytes", array_bytes)):
        if size is not None and size < 1 << 16:
            raise InputError(f"{name} is {size}, it must be at least 65536")


@dataclass(frozen=True)
class _Probe:
    seconds: float
    skip: frozenset[str]
    stage: Stage
    missing: dict[str, str]

    def host(self, array_bytes: int | None) -> HardwareProfile:
        """CPU and memory."""
        figures: dict[str, Figure] = {}
        if total := memory_bytes():
            source = "the system: memory that this process may use"
            figures["memory_bytes"] = reported("memory_bytes", total, source)
        self._try("memory", figures, lambda: probe_memory(self.seconds, array_bytes))
        self._try("gemm", figures, lambda: probe_numpy(self.seconds), "gemm fp32")
        self._try("gemm", figures, lambda: probe_torch(find_torch(), self.seconds), "gemm bf16")
        title = f"{cpu_name()}, {cpu_count()} CPUs"
        return HardwareProfile(slug(cpu_name()), title, "", figures, kind=Kind.HOST)

    def gpus(self) -> list[ProbedPart]:
        """Every kind of GPU, its rates where torch sees it."""
        if "gpu" in self.skip:
            self.missing["gpu"] = "left out as asked"
            return []
        try:
            return [self._gpu(found) for found in find_gpus()]
        except NotMeasuredError as error:
            self.missing["gpu"] = str(error)
            return []

    def _gpu(self, found: FoundGpu) -> ProbedPart:
        figures = dict(found.figures)

        def rates() -> dict[str, Figure]:
            torch = find_torch()
            device = torch_device(torch, found.name)
            copies = probe_copies(torch, self.seconds, device)
            return copies | probe_torch(torch, self.seconds, device)

        self._try("gpu", figures, rates, f"gpu {found.name}")
        name = slug(found.name)
        profile = HardwareProfile(name, found.name, "", figures, host_link=found.host_link)
        return ProbedPart(profile, found.count)

    def drive(self, folder: Path, drive_bytes: int) -> list[ProbedPart]:
        """The drive below `folder`; nothing if it was not measured."""
        figures: dict[str, Figure] = {}
        self._try("drive", figures, lambda: probe_drive(self.seconds, folder, drive_bytes))
        if not figures:
            return []
        title = drive_title(folder)
        name = f"drive-{slug(title.split(' (')[0])}"
        return [ProbedPart(HardwareProfile(name, title, "", figures, kind=Kind.DRIVE))]

    def _try(
        self,
        step: str,
        figures: dict[str, Figure],
        measure: Callable[[], dict[str, Figure]],
        what: str | None = None,
    ) -> None:
        """Add what `measure` finds to `figures`, or to `missing` why it found nothing."""
        what = what or step
        if step in self.skip:
            self.missing[what] = "left out as asked"
            return
        try:
            with self.stage(f"measure {what}"):
                figures.update(measure())
        except (NotMeasuredError, RuntimeError, OSError, MemoryError) as error:
            self.missing[what] = str(error).splitlines()[0] if str(error) else "out of memory"
