"""Tables of the errors that `judging.py` finds, as a page, and bands as the constants' file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.kernel_fit.fitting import Timed
from benchmarks.kernel_fit.judging import Donor, few_tokens
from moeprof.projection.moe_kernels.law import LawConstants
from moeprof.projection.moe_kernels.tables import ROUTINGS

LOW, HIGH = 0.1, 0.9  # quantiles of an 80 % band


@dataclass
class Judged:
    """Logarithms of measured over predicted of one group, [cells, tokens(, routings)]."""

    timed: Timed
    version: str
    constants: LawConstants
    law_tokens: np.ndarray
    table_tokens: np.ndarray
    table_routings: dict[str, np.ndarray]
    law_cells: np.ndarray
    law_system: np.ndarray
    donor: Donor

    @property
    def few(self) -> np.ndarray:
        """Mask of the token counts up to 512."""
        return few_tokens(self.timed)

    @property
    def label(self) -> str:
        """System, engine, kernel and format, the kernel's name cut to fit a table."""
        hardware, engine, kernel, dtype = self.timed.group
        return f"{hardware} {engine} {SHORT.get(kernel, kernel)} {dtype}"


SHORT = {
    "vllm_compressedtensorsw4a4nvfp4moe_flashinfer_cutlass_flashinferexperts": "flashinfer_cutlass",
    "vllm_unquantizedfusedmoe_flashinfer_cutlass_flashinferexperts": "flashinfer_cutlass",
    "vllm_unquantizedfusedmoe_triton_tritonexperts": "triton",
    "sglang_flashinfer_trtllm_moe": "flashinfer_trtllm",
    "sglang_fused_moe_triton": "triton",
    "moe_torch_flow_cutlass": "cutlass",
    "moe_torch_flow_min_latency": "min_latency",
}


def miss(logs: np.ndarray, quantile: float = 0.5) -> float:
    """Relative error in percent, at a quantile of all points."""
    return float(100 * np.quantile(np.abs(np.expm1(-logs)), quantile))


def band(logs: np.ndarray) -> tuple[float, float]:
    """Factors on a prediction between which 80 % of the measurements lie; 1 is always inside."""
    low, high = np.exp(np.quantile(logs, [LOW, HIGH]))
    return round(min(float(low), 1.0), 3), round(max(float(high), 1.0), 3)


def inside(logs: np.ndarray, ends: tuple[float, float]) -> float:
    """Percent of measurements inside a band."""
    factors = np.exp(logs)
    return float(100 * np.mean((factors >= ends[0]) & (factors <= ends[1])))


def held(logs: np.ndarray, few: np.ndarray) -> float:
    """Percent of points [cells, tokens, ...] inside a band made of the other half of the cells."""
    shares = [
        inside(logs[half::2][:, mask], band(logs[1 - half :: 2][:, mask]))
        for half in (0, 1)
        for mask in (few, ~few)
    ]
    weights = [few.sum(), (~few).sum()] * 2
    return float(np.average(shares, weights=weights))


def table_page(judged: Sequence[Judged]) -> str:
    """Errors of reading the tables."""
    rows = []
    for one in judged:
        odd = one.few[1::2]
        few, many = one.table_tokens[:, odd], one.table_tokens[:, ~odd]
        routings = [one.table_routings[name] for name in ROUTINGS]
        rows.append(
            [miss(few), miss(many), miss(one.table_tokens), miss(one.table_tokens, 0.9)]
            + [x for logs in routings for x in (miss(logs), miss(logs, 0.9))]
            + [held(one.table_tokens, odd)]
        )
    names = ["tokens <= 512", "> 512", "all", "p90"]
    names += [x for name in ROUTINGS for x in (name, "p90")]
    return _table(judged, [*names, "in band"], rows)


def law_page(judged: Sequence[Judged]) -> str:
    """Errors of the law on token counts and on cells that it was not fitted to."""
    rows = []
    for one in judged:
        odd = one.few[1::2]
        rows.append(
            [
                *(miss(one.law_tokens[:, mask]) for mask in (odd, ~odd)),
                miss(one.law_tokens, 0.9),
                *(miss(one.law_cells[:, mask]) for mask in (one.few, ~one.few)),
                miss(one.law_cells, 0.9),
                held(one.law_cells, one.few),
            ]
        )
    names = ["tokens <= 512", "> 512", "p90", "cells <= 512", "> 512", "p90", "in band"]
    return _table(judged, names, rows)


def system_page(judged: Sequence[Judged]) -> str:
    """Errors of the law with another system's constants."""
    rows = []
    for one in judged:
        others = [x for x in judged if x.timed.group[0] != one.timed.group[0]]
        others = [x for x in others if x.donor.near == one.donor.near]
        shares = []
        for few in (True, False):
            mask = one.few == few
            ends = band(np.concatenate([x.law_system[:, x.few == few].ravel() for x in others]))
            shares.append(inside(one.law_system[:, mask], ends))
        errors = [miss(one.law_system[:, mask]) for mask in (one.few, ~one.few)]
        rows.append([*errors, miss(one.law_system, 0.9), *shares])
    names = ["<= 512", "> 512", "p90", "in band <= 512", "in band > 512"]
    return _table(
        judged, names, rows, [f"{one.donor.hardware}{', near' * one.donor.near}" for one in judged]
    )


def _table(
    judged: Sequence[Judged],
    names: Sequence[str],
    rows: Sequence[Sequence[float]],
    last: Sequence[str] = (),
) -> str:
    named = [*names, "constants of"] if last else names
    lines = ["| group | " + " | ".join(named) + " |", "|---|" + "---|" * len(named)]
    for place, (one, row) in enumerate(zip(judged, rows, strict=True)):
        cells = [f"{value:.1f}" if value < 99.95 else f"{value:.0f}" for value in row]
        cells += [last[place]] if last else []
        lines.append(f"| {one.label} | " + " | ".join(cells) + " |")
    mean = [f"{value:.1f}" for value in np.mean(rows, 0)] + ([""] if last else [])
    return "\n".join([*lines, "| **mean of groups** | " + " | ".join(mean) + " |"])


def constants_file(judged: Sequence[Judged]) -> str:
    """The text of `kernels.toml`."""
    parts = [_CONSTANTS_HEAD]
    for name, near in (("assumed_near", True), ("assumed_far", False)):
        alike = [one for one in judged if one.donor.near == near]
        errors = (
            np.concatenate([one.law_system[:, one.few == few].ravel() for one in alike])
            for few in (True, False)
        )
        parts.append(_band_table(name, *map(band, errors)))
    for one in judged:
        few, odd = one.few, one.few[1::2]
        routed = np.stack(list(one.table_routings.values()), -1)
        table = [
            np.concatenate([one.table_tokens[:, own].ravel(), routed[:, mask].ravel()])
            for own, mask in ((odd, few), (~odd, ~few))
        ]
        law = [one.law_cells[:, mask] for mask in (few, ~few)]
        names = dict(zip(("hardware", "engine", "kernel", "dtype"), one.timed.group, strict=True))
        lines = [f'{name} = "{value}"' for name, value in {**names, "version": one.version}.items()]
        values = ", ".join(f"{k} = {v:.4g}" for k, v in one.constants._asdict().items())
        parts.append("[[group]]\n" + "\n".join(lines) + f"\nlaw = {{ {values} }}")
        parts.append(_band_line("law_band", *map(band, law)))
        parts.append(_band_line("table_band", *map(band, table)) + "\n")
    return "\n".join(parts)


_CONSTANTS_HEAD = """\
# Constants of the law of MoE kernels (law.py) and 80 % bands around law and table (groups.py).
# Written by `python benchmarks/moe_kernels.py --write`; fitted to the tables in data/, which are
# ai-dynamo/aiconfigurator systems data at 095f58a (Apache-2.0). Times in seconds; shares are of the
# datasheet's peaks; bands are factors on the prediction, for up to 512 tokens and for more.
# law_band: errors on TP x EP cells left out. table_band: on token counts and routings left out.
# assumed_near, assumed_far: errors of all groups with constants borrowed from other systems, where
# one of these is nearly the same (groups.py), and where none is.
"""


def _band_line(name: str, few: tuple[float, float], many: tuple[float, float]) -> str:
    return f"{name} = {{ few = [{few[0]}, {few[1]}], many = [{many[0]}, {many[1]}] }}"


def _band_table(name: str, few: tuple[float, float], many: tuple[float, float]) -> str:
    return f"[{name}]\nfew = [{few[0]}, {few[1]}]\nmany = [{many[0]}, {many[1]}]\n"
