"""What is in a trace, and whether everything in it is as it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.result import Result
from moeprof.trace.reader import LayerBatch, Trace, open_folder, open_trace
from moeprof.trace.rows import Phase
from moeprof.trace.schema import RANKS, Manifest
from moeprof.trace.streams import Checksum


@dataclass(frozen=True)
class TraceInfo(Result):
    """The contents of one trace. `problems` is empty when nothing is missing or damaged."""

    path: str
    model: str
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    steps: int
    layers: int
    experts: int
    top_k: int
    requests: int
    labels: dict[str, int]  # requests by label
    dropped: dict[str, int]
    engine: str
    rank_ordered: bool | None
    weights: bool
    token_ids: bool
    complete: bool
    counts_only: bool
    bytes: int
    unrecorded: int = 0  # (token, layer) places that are null
    margins: bool = False
    next_layer: bool = False
    request_names: str = "none"  # or hashed, or plain
    aggregate_steps: int | None = None  # tokens are counted per so many steps
    windows: int = 0  # of them that have tokens
    ranks: list[str] = field(default_factory=list)  # that it was joined of
    missing_ranks: list[str] = field(default_factory=list)
    rotated_tokens: int = 0  # recorded, then let go to make room
    sampling: dict[str, float] | None = None  # rate and seed, where requests were sampled
    requests_seen: int = 0  # with those that the sampler left out
    tokens_sampled_out: int = 0
    problems: list[str] = field(default_factory=list)


def describe_trace(trace: Trace) -> TraceInfo:
    """Sizes, labels and gaps of `trace`, without reading its expert columns."""
    ordered = not trace.counts_only
    phases = trace.tokens_by_phase
    labels = [request.label for request in trace.requests if request.label is not None]
    manifest = trace.manifest
    return TraceInfo(
        path=str(trace),
        model=trace.model.name,
        tokens=trace.tokens,
        prefill_tokens=phases.get(Phase.PREFILL, 0),
        decode_tokens=phases.get(Phase.DECODE, 0),
        steps=len(np.unique(trace.step)) if ordered else 0,
        layers=len(trace.layers),
        experts=trace.experts_per_layer,
        top_k=trace.top_k,
        requests=len(trace.requests),
        labels={label: labels.count(label) for label in trace.labels},
        dropped=trace.dropped,
        engine=f"{manifest.engine} {manifest.engine_version}".strip(),
        rank_ordered=manifest.rank_ordered,
        weights=manifest.weights,
        token_ids=manifest.token_ids,
        complete=manifest.complete,
        counts_only=trace.counts_only,
        bytes=_stored_bytes(trace.foreign if trace.ranks else trace.path),
        unrecorded=trace.unrecorded,
        margins=manifest.margins,
        next_layer=manifest.next_layer,
        request_names=manifest.request_names.value,
        aggregate_steps=manifest.aggregate_steps,
        windows=_windows(trace),
        ranks=list(trace.ranks),
        missing_ranks=list(trace.missing_ranks),
        rotated_tokens=manifest.rotated_tokens,
        sampling=manifest.sampling.model_dump() if manifest.sampling else None,
        requests_seen=len(trace.requests) + manifest.requests_sampled_out,
        tokens_sampled_out=manifest.tokens_sampled_out,
        problems=list(trace.problems),
    )


def _windows(trace: Trace) -> int:
    if trace.manifest.aggregate_steps is None:
        return 0
    return len(np.unique(trace.count_rows["window"].to_numpy()))


def _stored_bytes(path: Path | None) -> int:
    if path is None:
        return 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def validate_trace(path: str | Path) -> TraceInfo:
    """Open the trace at `path` and check every invariant; what fails is in `problems`.

    Checked: checksums, rows and columns of every file, and their sum; ids below the number of
    experts and distinct in a row; margins not below 0; steps that never decrease; positions of a
    request without a gap, unless tokens were dropped.
    Raises TraceError only where there is no trace at all.
    """
    trace = open_trace(path)
    info = describe_trace(trace)
    problems = [
        *(problem for rank in trace.ranks for problem in _rank_problems(Path(path), rank)),
        *_damaged_files(trace.path or Path(path), trace.manifest, info.problems),
        *info.problems,
        *_invariant_problems(trace),
    ]
    if not trace.counts_only:
        problems += _position_problems(trace)
    if not info.complete:
        problems.append("manifest.json: the recording was cut off before its writer closed it")
    return TraceInfo(**{**vars(info), "problems": problems})


def _rank_problems(path: Path, rank: str) -> Iterator[str]:
    """What is wrong with the trace of one rank, but for what opening it has said.

    Its rows need not be all of a request: another rank may hold the others.
    """
    folder = path / RANKS / rank
    trace = open_folder(folder)
    for problem in _damaged_files(folder, trace.manifest, trace.problems):
        yield f"{RANKS}/{rank}: {problem}"
    for problem in _invariant_problems(trace):
        yield f"{RANKS}/{rank}: {problem}"


def _invariant_problems(trace: Trace) -> Iterator[str]:
    """What cannot be, of any trace that was written as it should."""
    manifest = trace.manifest
    if trace.counts_only:
        yield from _count_problems(trace)
        return
    for layer in trace.layers:
        yield from _layer_problems(trace, layer)
    yield from _phase_problems(trace)
    yield from _step_problems(trace)
    if manifest.complete and trace.tokens != manifest.tokens:
        yield (
            f"manifest.json: {manifest.tokens:,} tokens were written, {trace.tokens:,} can be read"
        )


def _count_problems(trace: Trace) -> Iterator[str]:
    """What in counts of tokens cannot be."""
    if trace.manifest.aggregate_steps is None:
        return  # by another program, which may count otherwise
    for load in trace.counts_by_phase.values():
        odd = load.sum(axis=1) % trace.top_k
        if odd.any():
            layer = trace.layers[int(odd.argmax())]
            yield f"layer {layer}: its counts are no multiple of top-{trace.top_k}"
    if trace.tokens > trace.manifest.tokens and trace.manifest.complete:
        yield (
            f"manifest.json: {trace.manifest.tokens:,} tokens were counted, the counts are of "
            f"{trace.tokens:,}"
        )


def _damaged_files(folder: Path, manifest: Manifest, known: Sequence[str]) -> Iterator[str]:
    for stored in manifest.files:
        path = folder / stored.file
        if not path.is_file():
            if not any(problem.startswith(f"{stored.file}:") for problem in known):
                yield f"{stored.file}: is missing"  # a file that this reader does not open
            continue
        size = path.stat().st_size
        if size != stored.bytes:
            yield f"{stored.file}: {size:,} bytes, the manifest says {stored.bytes:,}"
            continue
        checksum = Checksum(path)
        checksum.advance(size)
        if checksum.hexdigest() != stored.crc32:
            yield f"{stored.file}: content differs from its checksum, do not trust its rows"


def _layer_problems(trace: Trace, layer: int) -> Iterator[str]:
    yield from _id_problems(trace, f"layer {layer}", lambda: trace.batches(layer))
    if trace.manifest.next_layer and layer != trace.layers[-1]:
        what = f"next experts of layer {layer}"
        yield from _id_problems(trace, what, lambda: trace.next_batches(layer))
    if trace.manifest.margins:
        negative = trace.margins(layer) < 0
        if negative.any():
            row = int(np.flatnonzero(trace.recorded(layer))[negative.argmax()])
            yield f"layer {layer}, row {row}: a margin is below 0"


def _id_problems(
    trace: Trace, what: str, batches: Callable[[], Iterator[LayerBatch]]
) -> Iterator[str]:
    """One sentence for the first impossible id and the first repeated id."""
    for check, sentence in (
        (_out_of_range, f"is not below {trace.experts_per_layer} experts"),
        (_repeats, "stands twice among the experts of one token"),
    ):
        for part in batches():
            bad = check(part, trace.experts_per_layer)
            if part.recorded is not None:
                bad &= part.recorded
            if bad.any():
                row = int(bad.argmax())
                yield f"{what}, row {part.start + row}: an id {sentence}"
                break


def _out_of_range(part: LayerBatch, experts: int) -> NDArray[np.bool_]:
    return np.asarray((part.experts >= experts).any(axis=1))


def _repeats(part: LayerBatch, experts: int) -> NDArray[np.bool_]:
    ordered = np.sort(part.experts, axis=1)
    return np.asarray((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))


def _phase_problems(trace: Trace) -> Iterator[str]:
    """The first row whose phase is none."""
    wrong = trace.phase_codes != trace.phase
    if wrong.any():
        row = int(wrong.argmax())
        yield f"row {row}: phase {trace.phase_codes[row]} is not 0, 1 or null"


def _step_problems(trace: Trace) -> Iterator[str]:
    """The first row whose step is below that of the row before."""
    falls = trace.step[1:] < trace.step[:-1]
    if falls.any():
        row = int(falls.argmax()) + 1
        yield f"row {row}: step {trace.step[row]} follows step {trace.step[row - 1]}"


def _position_problems(trace: Trace) -> Iterator[str]:
    """The first request whose positions jump, and how many others do.

    They may go back: an engine without a cache runs a sequence again, one that speculates a part.
    """
    if not trace.tokens or trace.dropped:
        return
    order = np.argsort(trace.request, kind="stable")
    request, position = trace.request[order], trace.position[order]
    jumps = (np.diff(position) > 1) & (np.diff(request) == 0)
    if jumps.any():
        first = int(jumps.argmax())
        broken = len(np.unique(request[1:][jumps]))
        yield (
            f"request {request[first]}: position {position[first]} is followed by "
            f"{position[first + 1]}, and no drop was counted ({broken} such requests)"
        )
