"""Workloads by name: distributions of lengths and of what the prefix cache holds."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.projection.serving.requests import Request
from moeprof.quantity import Provenance
from moeprof.result import Result


@dataclass(frozen=True)
class Distribution(Result):
    """Quantiles `values` at ascending `levels` from 0 to 1; `mean` is that of the source."""

    levels: tuple[float, ...]
    values: tuple[float, ...]
    provenance: Provenance
    source: str
    mean: float | None = None

    def draw(self, random: np.random.Generator, count: int, *, log: bool) -> NDArray[np.float64]:
        """`count` values, [request]; between levels linear, in the logarithm if `log`."""
        at = random.random(count)
        if log:
            drawn: NDArray[np.float64] = np.exp(np.interp(at, self.levels, np.log(self.values)))
            return drawn
        return np.interp(at, self.levels, self.values)


@dataclass(frozen=True)
class Workload(Result):
    """Tokens of whole prompts, the share of each that is cached, and tokens of the answers."""

    name: str
    title: str
    input_tokens: Distribution
    cached_share: Distribution
    output_tokens: Distribution

    def requests(
        self, count: int, *, seed: int = 0, longest: int | None = None, cached: bool = True
    ) -> list[Request]:
        """`count` requests that arrive at 0 s.

        Those of more than `longest` tokens, answer and all, have their prompts cut to it, as a
        server with that context limit would have it. Without `cached` nothing is in the cache.
        Raises InputError where `count` or `longest` leave nothing.
        """
        if count < 1 or (longest is not None and longest < 2):
            raise InputError(f"{count} requests of at most {longest} tokens: there must be some")
        random = np.random.default_rng(seed)
        prompts = self.input_tokens.draw(random, count, log=True)
        shares = self.cached_share.draw(random, count, log=False)
        outputs = self.output_tokens.draw(random, count, log=True)
        most = float("inf") if longest is None else longest
        made = []
        for prompt, share, output in zip(prompts, shares, outputs, strict=True):
            tokens = max(1, round(min(output, most - 1)))
            whole = max(1, round(min(prompt, most - tokens)))
            held = min(int(whole * share), whole - 1) if cached else 0
            made.append(Request(whole, tokens, cached_len=held))
        return made


def workload(name: str) -> Workload:
    """The workload that workloads.toml calls `name`. Raises InputError where there is none."""
    table = _tables().get(name)
    if table is None:
        raise InputError(f"no workload '{name}'; there are {', '.join(_tables())}")
    parts = {key: _distribution(part) for key, part in table.items() if key != "title"}
    return Workload(name=name, title=table["title"], **parts)


def workload_names() -> list[str]:
    """Names of all workloads."""
    return list(_tables())


def _distribution(table: dict[str, Any]) -> Distribution:
    return Distribution(
        levels=tuple(table["levels"]),
        values=tuple(table["values"]),
        provenance=Provenance(table["provenance"]),
        source=table["source"],
        mean=table.get("mean"),
    )


@cache
def _tables() -> dict[str, Any]:
    text = files(__package__).joinpath("workloads.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
