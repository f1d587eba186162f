"""A hardware profile with the source of every figure."""

from __future__ import annotations

from moeprof.hardware import Cluster, HardwareList, HardwareProfile
from moeprof.quantity import Quantity
from moeprof.report.text.layout import clipped, pairs, table, wrapped
from moeprof.report.wording import held_bytes, read_bytes

_LISTED = ("memory_bytes", "memory_bandwidth_bytes_per_s", "dense_tflops_bf16")


def hardware_text(hardware: HardwareProfile | Cluster) -> str:
    """Every figure with unit, provenance and source."""
    profile = hardware.profile if isinstance(hardware, Cluster) else hardware
    head = {"name": profile.name, "title": profile.title, "vendor": profile.vendor}
    if isinstance(hardware, Cluster):
        head["cluster"] = (
            f"{hardware.name}: nodes {hardware.nodes}, GPUs a node {hardware.gpus_per_node}"
        )
    head |= {"scale-up link": profile.scale_up_link, "host link": profile.host_link}
    figures = [_figure(name, figure) for name, figure in profile.figures.items()]
    return "\n\n".join([pairs(head), "\n".join(figures)])


def hardware_list_text(hardware: HardwareList) -> str:
    """A line a profile: what decides whether a model fits, and how fast it can be read."""
    rows = [
        [profile.name, clipped(profile.title, 34), *(_short(profile, name) for name in _LISTED)]
        for profile in hardware.profiles
    ]
    return table(["name", "title", "memory", "bandwidth", "bf16 TFLOP/s"], rows, left=2)


def _short(profile: HardwareProfile, name: str) -> str:
    figure = profile.figures.get(name)
    if figure is None:
        return "-"
    if figure.unit.startswith("bytes"):
        return read_bytes(figure.value) + figure.unit.removeprefix("bytes")
    return f"{figure.value:,g}"


def _figure(name: str, figure: Quantity) -> str:
    for unit in ("_bytes_per_s", "_bytes", "_w", "_usd"):
        name = name.replace(unit, "") if name.endswith(unit) or unit == "_usd" else name
    label = name.replace("_", " ").replace("gpu", "GPU").replace("tflops", "TFLOP/s")
    line = f"{label:<28}{_value(figure):>16}  {figure.provenance}"
    return f"{line}\n{wrapped(figure.source, '    ')}"


def _value(figure: Quantity) -> str:
    if figure.unit == "bytes":
        return f"{read_bytes(figure.value)} = {held_bytes(figure.value)}"
    if figure.unit == "bytes/s":
        return f"{read_bytes(figure.value)}/s"
    if figure.low is not None and (figure.low, figure.high) != (figure.value, figure.value):
        return f"{figure.value:,g} ({figure.low:,g}-{figure.high:,g}) {figure.unit}"
    return f"{figure.value:,g} {figure.unit}"
