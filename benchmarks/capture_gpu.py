"""What recording costs decode steps that a CUDA graph replays: MoE layers of MiniMax-M3's size.

    python benchmarks/capture_gpu.py [--batch 1 8 64 256] [--profile trace.json] [--cpu]

A step is the router and the experts of all MoE layers (bf16; every layer has a router of its own
and shares one set of experts, so that they fit), captured once with the recorder's copies in the
graph and once without. Rounds of replays take turns, timed by CUDA events. Then, untimed: every
recorded id is held against what the router returned, torch is told to raise where the host waits
for the device, and the calls that wait are counted with and without recording.

Exits 3 if ids differ or recording added a wait, 2 without a CUDA device. `--cpu` runs the same code
at a small size and without graphs, to see that it runs; its times say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from moeprof.capture.drain import ITEM_BYTES, Drain
from moeprof.capture.layout import Layout
from moeprof.capture.recorder import RoutingRecorder, Written
from moeprof.capture.routing import Routing
from moeprof.model import MoEModel, load_model
from moeprof.trace import Phase, TokenRows, TraceWriter, open_trace

TARGET = 0.01  # of the tokens/s without recording
MAX_PENDING_BYTES = 256 << 20
CHECKED_STEPS = 32
# The writer thread waits for events, which is what it is for; these would hold up the model's.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
SEEN_TOO = ("cudaEventSynchronize", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaHostAlloc")

Note = Callable[[int, torch.Tensor, torch.Tensor], None]  # layer's slot, ids, weights


class Layers:
    """Routers as MiniMax-M3 has them (sigmoid, bias for choosing), and experts with SwiGLU."""

    def __init__(self, model: MoEModel, count: int, device: torch.device, shrink: int) -> None:
        hidden = model.hidden_size // shrink
        inner = model.expert_intermediate_size // shrink
        experts = model.experts
        generator = torch.Generator(device).manual_seed(0)

        def weights(*shape: int) -> torch.Tensor:
            made = torch.empty(shape, dtype=torch.bfloat16, device=device)
            return made.normal_(0, shape[-2] ** -0.5, generator=generator)

        self.hidden = hidden
        self.top_k = model.top_k
        self.experts = experts
        self.routers = [weights(hidden, experts) for _ in range(count)]
        self.bias = torch.randn(experts, generator=generator, device=device) * 0.1
        self.up = weights(experts, hidden, 2 * inner)
        self.down = weights(experts, inner, hidden)

    def __call__(self, hidden: torch.Tensor, note: Note) -> torch.Tensor:
        """[tokens, hidden] to the same; `note` is told what every router decides."""
        for slot, router in enumerate(self.routers):
            normal = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:])
            scores = (normal @ router).float().sigmoid()
            ids = torch.topk(scores + self.bias, self.top_k, dim=-1, sorted=False)[1]
            weights = scores.gather(1, ids)
            weights = weights / weights.sum(-1, keepdim=True)
            note(slot, ids, weights)
            hidden = hidden + self._moe(normal, ids, weights)
        return hidden

    def _moe(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One grouped product over all experts: its shapes do not depend on what was chosen."""
        chosen, order = ids.reshape(-1).sort()
        tokens = order // self.top_k
        every = torch.arange(self.experts, device=ids.device)
        ends = torch.searchsorted(chosen, every, right=True).to(torch.int32)
        gate, up = torch._grouped_mm(hidden[tokens], self.up, offs=ends).chunk(2, -1)
        out = torch._grouped_mm(torch.nn.functional.silu(gate) * up, self.down, offs=ends)
        weighted = out * weights.reshape(-1)[order, None].to(out.dtype)
        return torch.zeros_like(hidden).index_add_(0, tokens, weighted)


@dataclass(frozen=True)
class Item:
    """A step on its way to the writer thread."""

    index: int
    tokens: int
    routing: Routing


class TraceThread:
    """Recorder, queue and writer as an engine's capture wires them."""

    def __init__(self, path: Path, model: MoEModel, slots: int, device: torch.device) -> None:
        self.recorder = RoutingRecorder([device] * slots, Layout(slots, model.top_k))
        self._writer = TraceWriter(path, model, layers=model.moe_layers[:slots])
        self._drain = Drain(self._handle, self._writer.tick, MAX_PENDING_BYTES)
        self._steps = 0
        self.tokens = 0
        self.dropped = 0

    def step(self, tokens: int, replay: Callable[[], object]) -> int:
        """`replay` as one recorded step; its index."""
        self.recorder.begin(tokens)
        replay()
        item = Item(self._steps, tokens, self.recorder.end())
        self._steps += 1
        self.tokens += tokens
        if not self._drain.offer(item, ITEM_BYTES + item.routing.nbytes):
            self.dropped += tokens
        return item.index

    def close(self) -> None:
        """Write everything."""
        self._drain.close()
        self._writer.close()

    def _handle(self, items: Sequence[Item]) -> None:
        for tokens, group in groupby(items, lambda item: item.tokens):
            same = list(group)
            routing = Routing.join([item.routing for item in same])
            if not routing.recorded.all():
                raise RuntimeError("a replay left rows unwritten")
            each = np.arange(tokens, dtype=np.int32)
            self._writer.write(
                TokenRows(
                    step=np.repeat([item.index for item in same], tokens).astype(np.int64),
                    request=np.tile(each, len(same)),
                    position=np.repeat([item.index for item in same], tokens).astype(np.int32),
                    phase=np.full(tokens * len(same), Phase.DECODE, np.int8),
                    experts=routing["experts"].astype(np.uint8),
                )
            )


class Step:
    """One decode step of `batch` tokens, with and without the recorder's copies in it."""

    def __init__(self, layers: Layers, batch: int, thread: TraceThread) -> None:
        device = layers.bias.device
        shape = (batch, layers.hidden)
        self.batch = batch
        self.inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(8)]
        self.hidden = self.inputs[0].clone()
        self.ids: dict[int, torch.Tensor] = {}  # by slot: what its router returned last
        self._layers = layers
        self._recorder = thread.recorder
        if device.type != "cuda":
            self.off, self.on = self._run_plain, self._run_recorded
            return
        self.off = self._capture(self._run_plain)
        self._recorder.prepare_capture()
        self.on = self._capture(self._run_recorded)

    def next_input(self, number: int) -> None:
        """Other tokens, so that a step that was not recorded shows."""
        self.hidden.copy_(self.inputs[number % len(self.inputs)])

    def _run_plain(self) -> None:
        self._layers(self.hidden, lambda slot, ids, weights: None)

    def _run_recorded(self) -> None:
        self._layers(self.hidden, self._note)

    def _note(self, slot: int, ids: torch.Tensor, weights: torch.Tensor) -> None:
        self.ids[slot] = ids
        self._recorder.write(slot, Written(ids, weights))

    def _capture(self, run: Callable[[], None]) -> Callable[[], None]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # what libraries set up at their first call is not for a graph
                self._run_plain()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay: Callable[[], None] = graph.replay
        return replay


def main() -> int:
    """Print tokens/s of both and their ratio by batch size; the exit status."""
    args = parse()
    if not args.cpu and not torch.cuda.is_available():
        print("needs a CUDA device (--cpu runs the same code small, to see that it runs)")
        return 2
    device = torch.device("cpu" if args.cpu else "cuda")
    model = load_model("minimax-m3")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.moetrace"
        thread = TraceThread(path, model, args.layers, device)
        layers = Layers(model, args.layers, device, shrink=96 if args.cpu else 1)
        kept: dict[int, torch.Tensor] = {}  # by step: the ids of its routers
        added = Counter[str]()
        for batch in args.batch:
            step = Step(layers, batch, thread)
            report(batch, measure(step, thread, args.rounds, args.steps))
            kept |= check_steps(step, thread)
            if device.type == "cuda":
                added += count_waits(step, thread, args.steps, args.profile)
        thread.close()
        return verdict(path, thread, kept, added)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--layers", type=int, help="MoE layers (default: M3's 57)")
    parser.add_argument("--steps", type=int, help="replays in a round")
    parser.add_argument("--rounds", type=int, help="rounds of each")
    parser.add_argument("--profile", type=Path, help="write torch's profile of both here (JSON)")
    parser.add_argument("--cpu", action="store_true", help="a dry run: small, without graphs")
    args = parser.parse_args()
    small, real = (3, 4, 2), (57, 50, 20)
    for name, value in zip(("layers", "steps", "rounds"), small if args.cpu else real, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def measure(step: Step, thread: TraceThread, rounds: int, steps: int) -> list[tuple[float, float]]:
    """Seconds a step without and with recording, a pair a round; they take turns to be first."""
    ways: list[Callable[[], object]] = [step.off, lambda: thread.step(step.batch, step.on)]
    pairs = []
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {way: time_replays(step, ways[way], steps) for way in order}
        pairs.append((seconds[0], seconds[1]))
    return pairs[1:]  # the first warms up: pinned memory is allocated


def time_replays(step: Step, run: Callable[[], object], steps: int) -> float:
    """Seconds a step of `steps` in a row."""
    if step.hidden.device.type != "cuda":
        started = time.perf_counter()
        replays(step, run, steps)
        return (time.perf_counter() - started) / steps
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    replays(step, run, steps)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / steps


def replays(step: Step, run: Callable[[], object], steps: int) -> None:
    """The loop that is timed and profiled."""
    for number in range(steps):
        step.next_input(number)
        run()


def report(batch: int, pairs: list[tuple[float, float]]) -> None:
    """One line."""
    off, on = (statistics.median(pair[way] for pair in pairs) for way in range(2))
    costs = sorted(recorded / plain - 1 for plain, recorded in pairs)
    middle = statistics.median(costs)
    print(
        f"batch {batch:4}: {batch / off:10.0f} tokens/s off, {batch / on:10.0f} on; recording "
        f"costs {middle:+7.2%} (median of {len(costs)} pairs, {costs[0]:+.2%} to "
        f"{costs[-1]:+.2%}), "
        f"{'within' if middle <= TARGET else 'above'} the target of {TARGET:.0%}"
    )


def check_steps(step: Step, thread: TraceThread) -> dict[int, torch.Tensor]:
    """Recorded steps in which nothing may wait; by index [tokens, layers, k] of the routers."""
    kept = {}
    for number in range(CHECKED_STEPS):
        step.next_input(number)
        with no_waiting(step.hidden.device):
            index = thread.step(step.batch, step.on)
        kept[index] = torch.stack([step.ids[slot] for slot in sorted(step.ids)], dim=1)
    return kept


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """While open, torch raises where the host would wait for the device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def count_waits(step: Step, thread: TraceThread, steps: int, file: Path | None) -> Counter[str]:
    """Waits that recording adds to a round, by the name of the call."""
    off = profile(step, step.off, steps, file and file.with_stem(f"{file.stem}-{step.batch}-off"))
    recorded = lambda: thread.step(step.batch, step.on)  # noqa: E731
    on = profile(step, recorded, steps, file and file.with_stem(f"{file.stem}-{step.batch}-on"))
    for name in (*WAITS, *SEEN_TOO):
        print(f"            {name:24} {off[name]:6} off {on[name]:6} on")
    return Counter({name: on[name] - off[name] for name in WAITS if on[name] > off[name]})


def profile(step: Step, run: Callable[[], object], steps: int, file: Path | None) -> Counter[str]:
    """Calls of the CUDA runtime in a round, by name."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        replays(step, run, steps)
        torch.cuda.synchronize()
    if file is not None:
        profiled.export_chrome_trace(str(file))
    return Counter({event.key: event.count for event in profiled.key_averages()})


def verdict(
    path: Path, thread: TraceThread, kept: dict[int, torch.Tensor], added: Counter[str]
) -> int:
    """Compare the trace with `kept`; the exit status."""
    trace = open_trace(path)
    recorded = np.stack([trace.experts(layer) for layer in trace.layers], axis=1)
    wrong = [
        index
        for index, ids in kept.items()
        if not np.array_equal(recorded[trace.step == index], ids.cpu().numpy())
    ]
    complete = trace.tokens + thread.dropped == thread.tokens
    print(
        f"{len(kept) - len(wrong)} of {len(kept)} checked steps hold the routers' own ids; "
        f"of {thread.tokens} tokens {trace.tokens} were recorded and {thread.dropped} dropped; "
        f"waits added: {dict(added) or 'none'}"
    )
    return 3 if wrong or added or not complete else 0


if __name__ == "__main__":
    sys.exit(main())
