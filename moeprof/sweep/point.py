"""One point of a grid to one row of the table. Runs in worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, load_model
from moeprof.projection import DeploymentProjection, project_deployment
from moeprof.quantity import Quantity
from moeprof.sweep.grid import AXES, Value

Row: TypeAlias = dict[str, Any]

# What a row has beside its axes, and the type of each; an axis' column is of the axis' type.
RESULTS: dict[str, type] = {
    "gpus": int,
    "fits": bool,
    "memory_bytes": float,  # of the fullest rank
    "max_concurrency": int,
    "running": float,  # requests that decode at a time
    "tpot_ms": float,
    "tpot_low_ms": float,
    "tpot_high_ms": float,
    "ttft_ms": float,
    "ttft_low_ms": float,
    "ttft_high_ms": float,
    "output_tok_s": float,  # of all GPUs
    "output_low_tok_s": float,
    "output_high_tok_s": float,
    "tok_s_per_gpu": float,
    "tok_s_per_user": float,  # 1 / tpot
    "usd_per_million_tokens": float,
    "provenance": str,
    "familiarity": str,
}
COLUMNS: dict[str, type] = {**{name: axis.kind for name, axis in AXES.items()}, **RESULTS}


def project_points(points: Sequence[Mapping[str, Value]]) -> list[Row | str]:
    """A row a point, or the reason why there can be no such deployment."""
    return [_project(point) for point in points]


def _project(point: Mapping[str, Value]) -> Row | str:
    given: dict[str, Any] = dict(point)
    model, cluster = _model(given.pop("model")), _cluster(given.pop("hardware"))
    tp, dp, pp = given["tp"], given["dp"], given["pp"]
    idle = 0 if tp is None else cluster.gpus - tp * dp * pp
    if idle > 0:
        return f"tp {tp} x dp {dp} x pp {pp} leaves {idle} of {cluster.gpus} GPUs idle"
    try:
        done = project_deployment(model, cluster, **given)
    except InputError as error:
        return str(error)
    return {**point, "tp": done.ledger.parallelism.tp, **_results(done, cluster.gpus)}


def _results(done: DeploymentProjection, gpus: int) -> Row:
    tpot, ttft, rate = done.tpot_ms, done.ttft_ms, done.output_tok_s
    assert tpot and ttft and rate  # a grid has lengths
    cost = done.cost_per_million_tokens
    values = (
        gpus,
        done.fits,
        done.memory["total"],
        done.max_concurrency,
        done.running,
        *_band(tpot),
        *_band(ttft),
        *_band(rate),
        rate.value / gpus,
        1e3 / tpot.value,
        cost.value if cost else None,
        tpot.provenance.value,
        done.familiarity,
    )
    named = dict(zip(RESULTS, values, strict=True))
    return {n: _six_digits(v) if isinstance(v, float) else v for n, v in named.items()}


def _band(each: Quantity) -> tuple[float | None, ...]:
    return each.value, each.low, each.high


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


@cache
def _model(name: str) -> MoEModel:
    return load_model(name)


@cache
def _cluster(name: str) -> Cluster:
    return load_hardware(name)
