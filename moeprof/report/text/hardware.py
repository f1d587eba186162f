"""Hardware profiles: a line each by kind, or every figure with its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moeprof.hardware import Cluster, HardwareList, HardwareProfile, Kind
from moeprof.hardware.figure import Figure
from moeprof.quantity import Quantity
from moeprof.report.text.layout import clipped, pairs, table, wrapped
from moeprof.report.wording import held_bytes, read_bytes

if TYPE_CHECKING:
    from moeprof.hardware.probe import HardwareProbe

_GPU = {
    "memory": "memory_bytes",
    "bandwidth": "memory_bandwidth_bytes_per_s",
    "bf16 TFLOP/s": "dense_tflops_bf16",
}
# Heading of each kind, and the figures of its columns.
_LISTED: dict[Kind, tuple[str, dict[str, str]]] = {
    Kind.GPU: ("GPUs", _GPU),
    Kind.SOC: ("GPU and host in one", _GPU),
    Kind.HOST: (
        "Hosts",
        {
            "bandwidth": "memory_bandwidth_bytes_per_s",
            "reached": "memory_bandwidth_effective_bytes_per_s",
        },
    ),
    Kind.LINK: ("Links", {"one way": "link_bytes_per_s", "reached": "link_effective_bytes_per_s"}),
    Kind.DRIVE: ("Drives", {"link": "link_bytes_per_s", "read": "read_bytes_per_s"}),
}
# What a figure's name ends in because of its unit, which stands beside the value already.
_SUFFIXES = {
    "bytes": "_bytes",
    "bytes/s": "_bytes_per_s",
    "transfers/s": "_per_s",
    "reads/s": "_per_s",
    "TFLOP/s": "",
    "W": "_w",
    "s": "_s",
}
_WORDS = {"gpu": "GPU", "gpus": "GPUs", "tflops": "TFLOP/s", "gemm": "GEMM", "usd": ""}
_NAME_WIDTH, _ALIAS_WIDTH = 30, 22


def hardware_text(hardware: Cluster | HardwareList) -> str:
    """Every figure of every part with unit, provenance and source."""
    if isinstance(hardware, HardwareList):
        return "\n\n".join(_profile(profile) for profile in hardware.profiles)
    nodes = f"nodes {hardware.nodes}, GPUs a node {hardware.gpus_per_node}"
    drives = f", drives a node {hardware.drives}" if hardware.drives else ""
    head = pairs({"cluster": f"{hardware.name}: {nodes}{drives}"})
    named = [hardware.profile, *(part for part, _ in hardware.parts())]
    return "\n\n".join([head, *(_profile(profile) for profile in named)])


def hardware_list_text(hardware: HardwareList) -> str:
    """A table a kind: what decides whether a model fits, and how fast it can be read."""
    sections = []
    for kind, (title, columns) in _LISTED.items():
        chosen = [profile for profile in hardware.profiles if profile.kind is kind]
        if chosen:
            sections.append(f"{title}\n{_table(chosen, columns)}")
    return "\n\n".join([*sections, "hardware show NAME gives every figure with its source."])


def probe_text(probe: HardwareProbe) -> str:
    """What was measured, what was not and why, and where it stands."""
    profiles = [_profile(part.profile, part.count) for part in probe.parts]
    missing = [wrapped(f"{what}: {why}", "  ") for what, why in probe.missing.items()]
    sections = [*profiles, *(["\n".join(["Not measured", *missing])] if missing else [])]
    if probe.path:
        sections.append(f"Written to {probe.path}\nmoeprof hardware show {probe.path}")
    return "\n\n".join(sections)


def _table(profiles: Sequence[HardwareProfile], columns: dict[str, str]) -> str:
    rows = [
        [
            clipped(profile.name, _NAME_WIDTH),
            clipped(profile.aliases[0] if profile.aliases else "", _ALIAS_WIDTH),
            *(_short(profile, name) for name in columns.values()),
        ]
        for profile in profiles
    ]
    return table(["name", "or", *columns], rows, left=2)


def _profile(profile: HardwareProfile, count: int = 1) -> str:
    head = {"name": profile.name, "title": profile.title, "kind": _kind(profile)}
    more = {
        "count": f"{count}" if count > 1 else "",
        "vendor": profile.vendor,
        "also called": ", ".join(profile.aliases),
        "scale-up link": profile.scale_up_link,
        "host link": profile.host_link,
    }
    head |= {name: text for name, text in more.items() if text}
    figures = [_figure(name, figure) for name, figure in profile.figures.items()]
    return "\n\n".join([pairs(head), "\n".join(figures)])


def _kind(profile: HardwareProfile) -> str:
    title = _LISTED[profile.kind][0].removesuffix("s")
    return f"{title}, {profile.role}" if profile.role else title


def _short(profile: HardwareProfile, name: str) -> str:
    figure = profile.figures.get(name)
    return "-" if figure is None else _value(figure, figure.value, listed=True)


def _figure(name: str, figure: Figure) -> str:
    unit = _SUFFIXES.get(figure.unit, "")
    words = (_WORDS.get(word, word) for word in name.removesuffix(unit).split("_"))
    label = " ".join(word for word in words if word)
    checked = "" if figure.verified else ", unverified"
    line = f"{label:<30}{_value(figure, figure.value):>22}  {figure.provenance}{checked}"
    return "\n".join([line, *(wrapped(detail, "    ") for detail in _details(figure))])


def _details(figure: Figure) -> list[str]:
    """The band, the repeats and the method, where there are; and the source."""
    details = []
    if figure.low is not None and figure.high is not None and figure.low < figure.high:
        low = _value(figure, figure.low, listed=True)
        high = _value(figure, figure.high, listed=figure.unit == "bytes")
        details.append(f"between {low} and {high}")
    if figure.by_threads:
        pairs = ", ".join(f"{n}: {_value(figure, v, listed=True)}" for n, v in figure.by_threads)
        details.append(f"by threads {pairs}")
    return [*details, *([figure.method] if figure.method else []), figure.source]


def _value(figure: Quantity, value: float, *, listed: bool = False) -> str:
    """`value` in the unit of `figure`; `listed` leaves out what the column's heading says."""
    if figure.unit == "bytes":
        return read_bytes(value) + ("" if listed else f" = {held_bytes(value)}")
    if figure.unit == "bytes/s":
        return f"{read_bytes(value)}/s"
    if figure.unit == "s":
        return f"{value * 1e6:,.4g} us"
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return number if listed else f"{number} {figure.unit}"
