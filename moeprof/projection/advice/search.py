"""Every deployment that hardware, engine and model allow, and the best of each kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, load_precision
from moeprof.projection.advice.candidate import Candidate
from moeprof.projection.advice.formats import (
    check_precision,
    most_weights,
    runnable_precisions,
    usual_kv_dtype,
)
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.recorded import RecordedRouting
from moeprof.projection.advice.splits import list_splits
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Held, plan_deployment
from moeprof.projection.laws import Laws
from moeprof.projection.parallelism import Parallelism

COUNTS = range(1, 9)  # of a GPU whose number is not given: what one node holds
_COUNTED = re.compile(r"\d+x")


@dataclass(frozen=True)
class Search:
    """What is searched. `precisions` None: all that run; `kv_dtype` None: as recipes set it."""

    model: MoEModel
    hardware: Sequence[str | Cluster]
    engine: str
    traffic: Traffic
    targets: LatencyTargets
    laws: Laws
    precisions: Sequence[str] | None = None
    kv_dtype: str | None = None
    index_dtype: str = "bf16"
    held: Held = field(default_factory=Held)
    recorded: RecordedRouting | None = None
    context: int | None = None

    def groups(self) -> Iterator[list[Candidate]]:
        """Of each hardware and precision all splits, those that do not fit among them."""
        for cluster in (each for name in self.hardware for each in clusters_of(name)):
            splits = list_splits(self.model, cluster.gpus, self.engine, cluster.nodes)
            for precision in self._precisions(cluster):
                group = [self._candidate(cluster, precision, split) for split in splits]
                if group:
                    yield group

    def _precisions(self, cluster: Cluster) -> list[str]:
        if self.precisions is None:
            return runnable_precisions(self.model, cluster.profile, self.engine)
        for name in self.precisions:
            loaded = load_precision(name, self.model)
            check_precision(loaded, self.model, cluster.profile, self.engine)
        return list(self.precisions)

    def _candidate(self, cluster: Cluster, name: str, split: Parallelism) -> Candidate:
        precision, gpu = load_precision(name, self.model), cluster.profile
        weights = most_weights(precision, self.model)
        deployment = plan_deployment(
            self.model,
            cluster,
            precision=precision,
            tp=split.tp,
            ep=split.ep,
            dp=split.dp,
            pp=split.pp,
            engine=self.engine,
            kv_dtype=self.kv_dtype or usual_kv_dtype(weights, gpu, self.engine),
            index_dtype=self.index_dtype,
            held=self.held,
        )
        loads = None if self.recorded is None else self.recorded.loads(split.ep)
        return Candidate(deployment, self.traffic, self.targets, self.laws, loads, self.context)


def clusters_of(hardware: str | Cluster) -> list[Cluster]:
    """One cluster as it is named (`8xh200`); of a bare GPU name one to eight of it.

    Raises InputError as `load_hardware` does.
    """
    found = load_hardware(hardware)
    fixed = isinstance(hardware, Cluster) or hardware.endswith(".toml")
    if fixed or _COUNTED.match(str(hardware).strip()):
        return [found]
    return [load_hardware(f"{count}x{hardware}") for count in COUNTS]


def best_splits(group: Sequence[Candidate], count: int = 1) -> list[Option]:
    """The `count` splits of one hardware and precision with most tokens/s, fastest first.

    Memory is looked at last, which takes most time: a split whose tokens/s with memory to spare
    are no more than others have with theirs is not looked at.
    """
    bounds = [(each.tokens_per_s(each.most_requests), each) for each in group if each.most_requests]
    found: list[Option] = []
    for bound, candidate in sorted(bounds, key=lambda pair: -pair[0]):
        if len(found) == count and bound <= found[-1].output_tok_s.value:
            break
        option = candidate.option()
        if option is not None:
            found = sorted([*found, option], key=lambda each: each.rank)[:count]
    return found


def parse_names(text: str, example: str = "8xh200,b200") -> list[str]:
    """The names in `a,b`. Raises InputError, with an example, where there is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"'{text}' names nothing: write {example}")
    return names
