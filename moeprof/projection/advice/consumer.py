"""A model on machines that one buys: what fits, in which format, how fast for one user."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, load_model, load_precision, weight_bytes
from moeprof.projection.advice.candidate import Candidate
from moeprof.projection.advice.formats import most_weights, runnable_precisions, usual_kv_dtype
from moeprof.projection.advice.host_experts import host_option
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.splits import list_splits
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment
from moeprof.projection.laws import Laws, shipped_laws
from moeprof.projection.parallelism import Parallelism
from moeprof.result import Result

_APPLE, _OTHERS = ("mlx",), ("vllm", "llamacpp")
_HOSTING = ("llamacpp", "ktransformers")  # engines that keep experts on the host


@dataclass(frozen=True)
class Machine(Result):
    """`hardware` as `load_hardware` reads it; `ram_bytes` of the host, None without one."""

    hardware: str
    title: str
    ram_bytes: float | None = None


@dataclass(frozen=True)
class MachineRow(Result):
    """What a machine does with the model. No option, and `problem` says why, where nothing fits."""

    machine: Machine
    options: list[Option]
    problem: str


@dataclass(frozen=True)
class MachineTable(Result):
    """One row a machine; `options` are those of all of them, fastest first."""

    model: str
    input_len: int
    output_len: int
    rows: list[MachineRow]
    options: list[Option]


def consumer_machines() -> list[Machine]:
    """Those of consumer.toml."""
    return list(_machines())


def try_machines(
    model: MoEModel | str | Path,
    traffic: Traffic,
    machines: Sequence[Machine | str] | None = None,
    *,
    laws: Laws | None = None,
) -> MachineTable:
    """`model` for one user on `machines`, those of consumer.toml if None.

    By each engine the published checkpoint with most bits that fits GPU memory, and the fastest
    that does; by llama.cpp and KTransformers also the one with most bits whose experts fit GPU and
    host memory together, which is assumed. `familiarity` says how far the laws know the others.
    """
    loaded, laws = load_model(model), laws or shipped_laws()
    rows = [
        _row(loaded, traffic, _machine(each), laws)
        for each in (consumer_machines() if machines is None else machines)
    ]
    options = [option for row in rows for option in row.options]
    options.sort(key=lambda option: -option.output_tok_s.value)
    return MachineTable(loaded.name, traffic.input_len, traffic.output_len, rows, options)


def _machine(named: Machine | str) -> Machine:
    if isinstance(named, Machine):
        return named
    host = load_hardware(named).host
    most = None if host is None or "memory_max_bytes" not in host.figures else host
    ram = None if most is None else most.figure("memory_max_bytes").value
    return Machine(named, named, ram)


def _row(model: MoEModel, traffic: Traffic, machine: Machine, laws: Laws) -> MachineRow:
    cluster = load_hardware(machine.hardware)
    options = list(_options(model, traffic, cluster, machine, laws))
    return MachineRow(machine, options, "" if options else _problem(model, cluster, machine))


def _options(
    model: MoEModel, traffic: Traffic, cluster: Cluster, machine: Machine, laws: Laws
) -> Iterator[Option]:
    """By each engine in GPU memory, then with experts on the host where that allows more bits."""
    held: list[Option] = []
    for engine in _engines(cluster):
        found = [
            option
            for name in _by_size(model, cluster, engine)
            for option in _resident(model, name, cluster, engine, traffic, laws)
        ]
        held += found[:1]
        fastest = max(found, key=lambda option: option.output_tok_s.value, default=None)
        held += [] if fastest is None or fastest is found[0] else [fastest]
    yield from held
    for engine in _HOSTING if machine.ram_bytes is not None else ():
        names = [option.precision for option in held if option.engine == engine]
        plans = [
            _plan(model, name, cluster, engine)
            for name in _by_size(model, cluster, engine)
            if name not in names
        ]
        hosted = (host_option(plan, traffic, machine.ram_bytes or 0) for plan in plans)
        yield from [option for option in hosted if option is not None][:1]


def _resident(
    model: MoEModel, name: str, cluster: Cluster, engine: str, traffic: Traffic, laws: Laws
) -> list[Option]:
    """The fastest split for one request that fits GPU memory, if one does."""
    fitting = []
    for split in list_splits(model, cluster.gpus, engine, cluster.nodes):
        deployment = _plan(model, name, cluster, engine, split)
        found = Candidate(deployment, traffic, LatencyTargets(), laws).nearest()
        fitting += [] if found is None else [found[1]]
    return sorted(fitting, key=lambda option: -option.output_tok_s.value)[:1]


def _plan(
    model: MoEModel, name: str, cluster: Cluster, engine: str, split: Parallelism | None = None
) -> Deployment:
    precision = load_precision(name, model)
    kv_dtype = usual_kv_dtype(most_weights(precision, model), cluster.profile, engine)
    whole = Parallelism(pp=cluster.gpus) if engine == "llamacpp" else Parallelism(cluster.gpus)
    split = split or whole
    return Deployment(model, cluster, precision, split, engine, kv_dtype=kv_dtype)


def _engines(cluster: Cluster) -> tuple[str, ...]:
    return _APPLE if cluster.profile.vendor == "apple" else _OTHERS


def _by_size(model: MoEModel, cluster: Cluster, engine: str) -> list[str]:
    """Published checkpoints that run there, most bytes first."""
    names = runnable_precisions(model, cluster.profile, engine)
    return sorted(names, key=lambda name: -_bytes(model, name))


def _bytes(model: MoEModel, name: str) -> int:
    return sum(weight_bytes(model, name).values())


def _problem(model: MoEModel, cluster: Cluster, machine: Machine) -> str:
    names = {name for engine in _engines(cluster) for name in _by_size(model, cluster, engine)}
    if not names:
        return "no published checkpoint runs there"
    least = min(names, key=lambda name: _bytes(model, name))
    has = cluster.gpus * cluster.profile.memory_visible.value + (machine.ram_bytes or 0)
    return (
        f"the smallest checkpoint, {least}, takes {_bytes(model, least) / 1e9:,.0f} GB, and "
        f"programs are offered {has / 1e9:,.0f} GB"
    )


@cache
def _machines() -> tuple[Machine, ...]:
    text = files("moeprof.projection.advice").joinpath("consumer.toml").read_text(encoding="utf-8")
    return tuple(Machine(**entry) for entry in tomllib.loads(text)["machine"])
