"""What watching costs at MiniMax-M3's size: 57 layers of 128 experts, top-4, steps of 64 tokens.

    python benchmarks/live_cost.py [--rows 64] [--steps 400]

CPU time of each part is set beside a server that runs 100 steps a second: a ratio above 1
keeps up. The server's own share of a poll, packing its newest rows, is beside its time in between.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa

from moeprof import MoEModel, TraceWriter
from moeprof.live import Poll, Shape, State, Status, StepRows, TraceSource, Watch
from moeprof.live.answers import read_answer, rows_of
from moeprof.live.join import StepJoin
from moeprof.trace import Phase, TokenRows
from moeprof.trace.columns import to_batch
from moeprof.trace.ranks import Rank
from moeprof.trace.schema import Manifest

STEPS_PER_S = 100


def main() -> None:
    """Print a line a part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    model = MoEModel.preset("minimax-m3")
    rows = decode_steps(model, asked.rows, asked.steps)
    parts = {
        "server: pack the rows of a poll": lambda: packed(model, rows),
        "unpack and check an answer": unpacking(model, rows),
        "sums and LRU of three sizes": summing(model, rows),
        "a poll's figures (every 100 steps)": figures_of(model, rows),
    }
    for name, run in parts.items():
        show(name, asked.steps, best(run))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.moetrace"
        with TraceWriter(path, model) as writer:
            for step in range(0, asked.steps, 50):
                writer.write(sliced(rows, step, step + 50))
                writer.flush()
        show("all of a trace, tailed", asked.steps, best(lambda: tailed(path)))
        started = time.perf_counter()
        with closing(TraceSource(path)) as source:
            Watch(source, steps=512).poll()
        print(f"first figures of a trace after {time.perf_counter() - started:.2f} s (target: 2)")


def show(name: str, steps: int, seconds: float) -> None:
    """A line."""
    each = seconds / steps
    print(f"{name:36} {1e3 * each:6.3f} ms a step, {1 / each / STEPS_PER_S:6.1f} x 100 steps/s")


def best(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of CPU of the fastest of several runs: the machine is shared."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def decode_steps(model: MoEModel, rows: int, steps: int) -> TokenRows:
    """Skewed routing, in which experts repeat."""
    rng = np.random.default_rng(0)
    layers = len(model.moe_layers)
    bias = rng.normal(0, 1, (layers, model.experts)).astype(np.float32)
    ids = np.empty((rows * steps, layers, model.top_k), np.uint8)
    for step in range(steps):
        scores = rng.gumbel(size=(rows, layers, model.experts)).astype(np.float32) + bias
        ids[step * rows :][:rows] = np.argpartition(-scores, model.top_k)[..., : model.top_k]
    total = rows * steps
    return TokenRows(
        step=np.repeat(np.arange(steps), rows).astype(np.int64),
        request=np.tile(np.arange(rows), steps).astype(np.int32),
        position=np.repeat(np.arange(steps), rows).astype(np.int32),
        phase=np.full(total, Phase.DECODE, np.int8),
        experts=ids,
    )


def sliced(rows: TokenRows, start: int, stop: int) -> TokenRows:
    """Steps `start` to `stop`."""
    here = slice(*np.searchsorted(rows.step, [start, stop]))
    assert rows.phase is not None
    return TokenRows(
        rows.step[here], rows.request[here], rows.position[here], rows.phase[here],
        rows.experts[here],
    )  # fmt: skip


def packed(model: MoEModel, rows: TokenRows) -> str:
    """The rows as a rank sends them, 100 steps a poll."""
    manifest = Manifest.make(
        clock_base=0.0, model={}, layers=list(model.moe_layers), experts=model.experts,
        top_k=model.top_k,
    )  # fmt: skip
    for start in range(0, int(rows.step[-1]) + 1, 100):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, manifest.segment_schema) as stream:
            stream.write_batch(to_batch(sliced(rows, start, start + 100), manifest))
        sent = base64.b64encode(sink.getvalue()).decode()
    return sent


def unpacking(model: MoEModel, rows: TokenRows) -> Callable[[], object]:
    """Answers of 100 steps each, from JSON to steps."""
    answers = []
    for start in range(0, int(rows.step[-1]) + 1, 100):
        rank = {
            "recording": True, "layers": list(model.moe_layers), "experts": model.experts,
            "top_k": model.top_k, "rows": packed(model, sliced(rows, start, start + 100)),
        }  # fmt: skip
        answers.append(json.dumps({"recording": True, "ranks": [rank]}))
    shape = shape_of(model)

    def run() -> None:
        join = StepJoin([Rank()], [shape.layers], shape)
        for answer in answers:
            for part in rows_of(read_answer(json.loads(answer)).ranks[0]):
                join.push(0, part)
            join.take(0.0)

    return run


class _Steps:
    """A source of polls of `size` steps."""

    name = "benchmark"

    def __init__(self, model: MoEModel, steps: list[StepRows], size: int) -> None:
        self._status = Status(State.RECORDING, shape=shape_of(model))
        self._polls = [steps[i : i + size] for i in range(0, len(steps), size)]

    def poll(self) -> Poll:
        return Poll(self._status, self._polls.pop(0) if self._polls else [])

    def close(self) -> None:
        pass


def shape_of(model: MoEModel) -> Shape:
    """The model's axes."""
    return Shape(tuple(model.moe_layers), model.experts, model.top_k)


def steps_of(rows: TokenRows) -> list[StepRows]:
    """Rows by step."""
    parts = [sliced(rows, step, step + 1) for step in range(int(rows.step[-1]) + 1)]
    return [StepRows(i, p.phase, p.experts, None) for i, p in enumerate(parts)]  # type: ignore[arg-type]


def summing(model: MoEModel, rows: TokenRows) -> Callable[[], object]:
    """All steps in one poll."""
    steps = steps_of(rows)
    return lambda: Watch(_Steps(model, steps, len(steps)), steps=512).poll()


def figures_of(model: MoEModel, rows: TokenRows) -> Callable[[], object]:
    """Polls that bring nothing, one for each hundred steps."""
    steps = steps_of(rows)
    watch = Watch(_Steps(model, steps, len(steps)), steps=512)
    watch.poll()
    return lambda: [watch.poll() for _ in range(len(steps) // 100)]


def tailed(path: Path) -> object:
    """All figures of a trace."""
    with closing(TraceSource(path)) as source:
        return Watch(source, steps=512).caught_up()


if __name__ == "__main__":
    main()
