"""What a projection hangs on routing, and how far its stand-ins are from what was recorded.

    python benchmarks/routing_sensitivity.py [m3|ratios|drafts|beyond|transfer|maps|gib|speed ...]

`m3`: MiniMax-M3 in BF16 on 8 ranks of an H200 node: even routing, AIConfigurator's power law, the
shipped recording carried over, and that placed, in vLLM's kernels as they were timed.

`ratios`: every recording's load over even routing's, at steps it can fill (after `/` where it
cannot). `drafts`: experts that consecutive tokens of one request read. `beyond`: loads above what
half of a recording's requests can fill, beside what all of them are measured to be. `transfer`:
each recording carried over to the shape of every other one, beside even routing for the same, at
steps that the other can fill: median and worst relative error. `speed`: milliseconds of a question.

`maps`: redundancy and a map for mixed domains in tokens/s; `gib`: what a GiB is worth. Both by a
plain law with T0, ETA and REST_S below, since no table has ranks with redundant experts:

    layer = max(T0 + distinct x bytes / (ETA x bandwidth), assignments x 2 parameters / peak FLOP/s)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.timing import best_of
from moeprof.hardware import load_hardware
from moeprof.model import load_model
from moeprof.placement.mix import mix_domains
from moeprof.placement.sweep import sweep_redundancy
from moeprof.placement.topology import Topology
from moeprof.placement.waiting import assignment_seconds
from moeprof.projection.moe_kernels import M3_SHAPE
from moeprof.projection.routing import (
    Seconds,
    TraceRouting,
    TransferredRouting,
    UniformRouting,
    mix_speeds,
    moe_seconds,
    redundancy_speeds,
    routing_for,
    study_routing,
    value_of_gib,
)
from moeprof.report.text.layout import table
from moeprof.report.text.routing import gib_text, mix_speeds_text, sensitivity_text, speeds_text
from moeprof.trace import Phase, Trace, open_trace
from tests.recordings import READERS, SHIPPED, shared_folder

RANKS = 8
# Of M3's MoE layer in BF16 on an H200, fitted to aiconfigurator's tables up to 512 tokens with a
# mean error of 4 %; T0 in seconds, ETA of the memory's peak.
T0, ETA = 25e-6, 0.90
# Of the rest of a step, for `maps` and `gib` alone: any constant shows the same order.
REST_S = 4e-3


def layer_law() -> Seconds:
    """Seconds of one MoE layer of M3 on its busiest rank."""
    m3, cluster = load_model("minimax-m3"), load_hardware("8xh200")
    read = m3.bytes_per_expert("bf16") / (ETA * cluster.profile.memory_bandwidth.value)
    multiplied = assignment_seconds(m3, cluster).value
    return lambda tokens, distinct, load: max(T0 + distinct * read, load * multiplied)


def step_law() -> Seconds:
    """Seconds of a step of M3: its MoE layers, all like the mean one, and a constant."""
    layer, layers = layer_law(), len(load_model("minimax-m3").moe_layers)
    return lambda tokens, distinct, load: REST_S + layers * layer(tokens, distinct, load)


def recordings() -> Iterator[tuple[str, Trace]]:
    """The shipped recording, and those that stand beside the repository and have requests."""
    yield "tiny-m3", open_trace(SHIPPED)
    folder = shared_folder()
    for name in ("gpt-oss-20b", "deepseek-v4-flash", "granite-3.0-1b", "olmoe-1b-7b"):
        if folder:
            yield name, READERS[name](folder)


def m3() -> None:
    """Side by side, decode and prefill."""
    decode, prefill = (1, 8, 32, 128, 512), (512, 2048, 8192)
    for phase, tokens, label in (
        (Phase.DECODE, decode, None),
        (Phase.PREFILL, prefill, None),
        (Phase.PREFILL, prefill, "english"),
    ):
        result = study_routing(
            open_trace(SHIPPED),
            load_model("minimax-m3"),
            ranks=RANKS,
            tokens=tokens,
            phase=phase,
            label=label,
            alpha=1.01,
            transfer="distinct-ratio",
            seconds=lambda load: moe_seconds(load, M3_SHAPE, "h200", "vllm", "bf16"),
        )
        print(sensitivity_text(result), end="\n\n")


def ratios() -> None:
    """Distinct experts and busiest rank over those of even routing."""
    sizes = (1, 4, 16, 64, 256, 1024)
    for phase in (Phase.DECODE, Phase.PREFILL):
        rows = []
        for name, trace in recordings():
            routing = TraceRouting(trace)
            for figure in ("distinct", "busiest_assignments"):
                cells = [_ratio(routing, tokens, phase, figure) for tokens in sizes]
                rows.append([name, figure.split("_")[0], *cells])
        print(phase.name.lower(), table(["recording", "over even", *map(str, sizes)], rows, 2),
              sep="\n", end="\n\n")  # fmt: skip


def _ratio(routing: TraceRouting, tokens: int, phase: Phase, figure: str) -> str:
    load = routing.load(tokens, RANKS, phase=phase)
    even = UniformRouting(routing.shape).load(tokens, RANKS)
    shown = f"{getattr(load, figure).mean() / getattr(even, figure).mean():.3f}"
    return shown + {"measured": "", "fitted": "/", "assumed": "//"}[load.provenance.value]


def drafts() -> None:
    """Distinct experts of a layer when a request's next tokens are verified together."""
    rows = []
    for name, trace in recordings():
        routing = TraceRouting(trace)
        for tokens in (2, 4, 8):
            load = routing.load(tokens, 1, consecutive=tokens)
            even = UniformRouting(routing.shape).load(tokens, 1)
            one = routing.shape.top_k
            cells = (load.distinct.mean() / one, even.distinct.mean() / one)
            rows.append([name, tokens, *(f"{cell:.2f}" for cell in cells)])
    print(table(["recording", "tokens", "experts of one token", "if even"], rows))


def beyond() -> None:
    """What half of the requests, drawn anew, say of steps that all of them can fill."""
    rows = []
    for name, trace in recordings():
        requests = np.unique(trace.request)
        if len(requests) < 8:
            continue
        half = TraceRouting(trace, keep=np.isin(trace.request, requests[::2]))
        whole = TraceRouting(trace)
        for tokens in sorted({len(requests) * 5 // 8, len(requests)}):
            a, b = half.load(tokens, RANKS), whole.load(tokens, RANKS)
            errors = [
                float(np.median(np.abs(getattr(a, f) / getattr(b, f) - 1)))
                for f in ("distinct", "most_distinct", "busiest_assignments")
            ]
            rows.append([name, tokens, *(f"{100 * e:.1f} %" for e in errors), a.provenance.value])
    print(table(["recording", "tokens", "distinct", "read", "busiest", "half says"], rows))


def transfer() -> None:
    """From every recording to the shape of every other, beside even routing."""
    found = [(name, TraceRouting(trace)) for name, trace in recordings()]
    rows = []
    for phase, sizes in ((Phase.DECODE, (1, 4, 16, 64)), (Phase.PREFILL, (64, 256, 1024))):
        for figure in ("distinct", "most_distinct", "busiest_assignments"):
            carried, even = [], []
            for name, source in found:
                for other, target in found:
                    if name == other:
                        continue
                    for tokens in sizes:
                        truth = target.load(tokens, RANKS, phase=phase)
                        if truth.provenance != "measured":
                            continue
                        told = TransferredRouting(source, target.shape)
                        guess = told.load(tokens, RANKS, phase=phase)
                        null = UniformRouting(target.shape).load(tokens, RANKS)
                        carried.append(_error(guess, truth, figure))
                        even.append(_error(null, truth, figure))
            cells = [f"{100 * f(errors):.1f} %" for errors in (carried, even)
                     for f in (np.median, np.max)]  # fmt: skip
            rows.append([phase.name.lower(), figure, *cells])
    columns = ["phase", "figure", "carried over", "worst", "even", "worst"]
    print(table(columns, rows, 2))


def _error(guess: object, truth: object, figure: str) -> float:
    """Relative error of the mean over layers, to which layers are summed."""
    return abs(float(getattr(guess, figure).mean() / getattr(truth, figure).mean()) - 1)


def maps() -> None:
    """Redundancy and mixes of the shipped recording, in tokens/s of M3's layers."""
    trace, law = open_trace(SHIPPED), step_law()
    sweep = sweep_redundancy(
        trace, RANKS, (0, 8, 16, 32), split="request", batch=128, phase=Phase.DECODE, resamples=0
    )
    for tokens in (128, 8192):
        print(f"{tokens} tokens a step")
        print(speeds_text(redundancy_speeds(sweep, trace, law, tokens=tokens)), end="\n\n")
    mix = mix_domains(trace, Topology.even(RANKS, trace.experts_per_layer))
    print(mix_speeds_text(mix_speeds(mix, trace, law, tokens=8192)))


def gib() -> None:
    """A GiB on each of 8 GPUs with all of M3 in BF16, at 8,192 tokens of context."""
    trace, model = open_trace(SHIPPED), load_model("minimax-m3")
    experts, recorded = trace.experts_per_layer, TraceRouting(trace)
    sweep = sweep_redundancy(trace, RANKS, (0, 8), split="request", batch=128, resamples=0)
    placed = {
        slots: routing_for(TraceRouting(trace, row.placement), trace, model, "distinct-ratio")
        for slots, row in zip((0, 1), sweep.rows, strict=True)
    }
    assert experts % RANKS == 0
    for sequences in (8, 64, 512):
        value = value_of_gib(
            routing_for(recorded, trace, model, "distinct-ratio"),
            step_law(),
            sequences=sequences,
            ranks=RANKS,
            kv_bytes_per_sequence=8192 * model.kv_bytes_per_token_per_rank(RANKS, "bf16", "bf16"),
            placed=placed.__getitem__,
            slot_bytes=len(model.moe_layers) * model.bytes_per_expert("bf16"),
        )
        print(gib_text(value), end="\n\n")


def speed() -> None:
    """A first question about a step, and one more, of a recording of M3's layers."""
    trace = open_trace(SHIPPED)
    asked = TraceRouting(trace)
    asked.load(300, RANKS)
    times = best_of(
        3,
        first=lambda: TraceRouting(trace).load(300, RANKS),
        again=lambda: asked.load(300, RANKS),
        even=lambda: UniformRouting(asked.shape).load(300, RANKS),
    )
    print(", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in times.items()))


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part for part in (m3, ratios, drafts, beyond, transfer, maps, gib, speed)
}

if __name__ == "__main__":
    for asked_for in sys.argv[1:] or PARTS:
        print(f"== {asked_for}")
        PARTS[asked_for]()
        print()
