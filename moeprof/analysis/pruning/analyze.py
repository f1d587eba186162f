"""Which experts could go, be merged or be adapted, as far as a recording of choices tells.

docs/methods/pruning.md has the formulas and what they do not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeprof.analysis.pruning.coverage import PruningRow, judge_pruning
from moeprof.analysis.pruning.merging import MergeHints, find_pairs
from moeprof.analysis.pruning.sums import split_in_halves, sum_domains
from moeprof.analysis.pruning.targets import AdapterTargets, LayerExperts, find_targets
from moeprof.errors import InputError, ModelError
from moeprof.result import Result
from moeprof.trace import Trace

SHARE = 0.2  # of a domain's routing that its adapted experts are to have: ESFT's of token scores


@dataclass(frozen=True)
class PruningResult(Result):
    """What pruning, merging and adapting experts would touch."""

    trace: str
    domains: list[str]
    domain: str | None  # that experts are kept for; None: all
    judged_on: str  # in words; the choice is made on the rest
    rows: list[PruningRow]
    suggested: PruningRow  # the row of `keep`, or the fewest that every domain can be served with
    pruned: list[LayerExperts]  # that go in the suggested row
    merge: MergeHints | None  # None: one layer alone, which has no neighbours
    targets: list[AdapterTargets]  # by domain
    experts: int
    top_k: int
    layers: int
    tokens: int
    requests: int
    format: str  # of the bytes saved
    seed: int


def analyze_pruning(
    trace: Trace,
    *,
    domain: str | None = None,
    keep: int | None = None,
    share: float = SHARE,
    format: str = "bf16",
    seed: int = 0,
) -> PruningResult:
    """Coverage by experts pruned, pairs to merge, and experts to adapt by domain.

    `domain` keeps experts for one label alone. `keep` experts of each layer are suggested to stay,
    else as few as serve every domain. `share` is what the adapted experts' scores must reach; these
    are gate weights where they were recorded, with `share` as it stands. Bytes are of `format`, and
    None where the model's tensors were not counted. Raises InputError on a recording of counts, an
    unknown domain or format, or numbers out of range; TraceError on a damaged trace.
    """
    size, top_k = trace.experts_per_layer, trace.top_k
    if keep is not None and not top_k <= keep <= size:
        raise InputError(f"keep = {keep}: a layer keeps from {top_k}, its top-k, to {size} experts")
    if not 0 < share <= 1:
        raise InputError(f"share = {share}: above 0 and at most 1")
    halves = split_in_halves(trace, seed)
    if domain is not None and domain not in halves.domains:
        raise InputError(f"{trace}: no label '{domain}'; there are {', '.join(halves.domains)}")
    sums = sum_domains(trace, halves)
    names = halves.domains
    chosen = np.arange(len(names)) if domain is None else np.array([names.index(domain)])
    rows, suggested, order = judge_pruning(
        sums, names, chosen, top_k=top_k, keep=keep, expert_bytes=_expert_bytes(trace, format)
    )
    targets = find_targets(
        sums, names, trace.layers, share, "gate" if sums.weight is not None else "token"
    )
    return PruningResult(
        trace=str(trace),
        domains=names,
        domain=domain,
        judged_on=halves.judged_on,
        rows=rows,
        suggested=suggested,
        pruned=[
            LayerExperts(layer, sorted(least[: suggested.pruned].tolist()))
            for layer, least in zip(trace.layers, order.by_layer, strict=True)
        ],
        merge=find_pairs(trace, halves.group // len(names)),
        targets=[found for found in targets if domain in (None, found.domain)],
        experts=size,
        top_k=top_k,
        layers=len(trace.layers),
        tokens=trace.tokens,
        requests=halves.requests,
        format=format,
        seed=seed,
    )


def _expert_bytes(trace: Trace, format: str) -> int | None:
    try:
        return trace.model.bytes_per_expert(format)
    except ModelError:  # an unknown format is an InputError of its own and goes up
        return None
