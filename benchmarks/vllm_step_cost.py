"""What a recorded step costs the thread that runs vLLM's model, at MiniMax-M3's size.

    python benchmarks/vllm_step_cost.py [--steps 400] [--pause 0.02]

The worker's own code around a forward, on stand-ins of vLLM's runner and with real routing rows,
beside one hundredth of a decode step: what `project` says of M3 on eight H200s at that batch. Steps
come one right after the other, when caches are warm, and with a pause between them, when they are
not. A server lies in between, and where it prepares a step while the device runs the one before,
it pays neither. The writer thread shares the interpreter. Copies run on the CPU here; on a GPU
they are launches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from moeprof import MoEModel, project_deployment
from moeprof.capture.vllm.buffer import StepBuffer
from moeprof.capture.vllm.rank_recording import Subject
from moeprof.capture.vllm.ranks import Rank
from moeprof.capture.vllm.worker import WorkerRecorder


def main() -> None:
    """Print a line a batch size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds")
    asked = parser.parse_args()
    print(f"off: {1e3 * off_s():.1f} ms a process, once")
    print("requests    warm, us  of 1 % of a step   after a pause, us  of 1 %   writer, us CPU")
    for requests in (1, 16, 64, 256):
        warm_s, writer_s = measure(requests, asked.steps, 0.0)
        cold_s, _ = measure(requests, asked.steps, asked.pause)
        bound_s = decode_step_s(requests) / 100
        print(
            f"{requests:8}  {1e6 * warm_s:10.0f}  {warm_s / bound_s:15.2f}"
            f"  {1e6 * cold_s:18.0f}  {cold_s / bound_s:6.2f}  {1e6 * writer_s:15.0f}"
        )


def off_s() -> float:
    """What the plugin takes of a process that does not ask for it: its import and one call."""
    program = """
import time
started = time.perf_counter()
from moeprof.capture.vllm.plugin import register
register()
print(time.perf_counter() - started)
"""
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(5)]
    return float(np.median([float(run.stdout) for run in runs]))


def decode_step_s(requests: int) -> float:
    """Of M3 in MXFP8 on 8 H200, `requests` at a time with 1,024 + 1,024 tokens. [fitted]"""
    projection = project_deployment(
        "minimax-m3",
        "8xh200",
        precision="mxfp8",
        tp=8,
        concurrency=requests,
        input_len=1024,
        output_len=1024,
    )
    assert projection.tpot_ms is not None
    return projection.tpot_ms.value / 1e3


@dataclass
class Runner:
    """As vLLM's first model runner shows itself, all requests decoding."""

    names: list[str]

    def __post_init__(self) -> None:
        count = len(self.names)
        self.input_batch = SimpleNamespace(req_ids=self.names, num_reqs=count)
        self.positions = torch.full((count,), 100, dtype=torch.int64)
        self.input_ids = torch.zeros(count, dtype=torch.int32)
        self.requests = {name: SimpleNamespace(num_prompt_tokens=50) for name in self.names}


def measure(requests: int, steps: int, pause_s: float) -> tuple[float, float]:
    """(seconds a step that the engine's thread stands still, CPU seconds of the writer thread)."""
    model = MoEModel.preset("minimax-m3")
    layers = list(model.moe_layers)
    buffer = StepBuffer(torch.device("cpu"), 8192, len(layers), model.top_k)
    recorder = WorkerRecorder()
    recorder.provide(Subject(Rank(), model, layers, "0.32.0", False), buffer)
    runner = Runner([f"cmpl-{number:032x}-0-01234567" for number in range(requests)])
    with tempfile.TemporaryDirectory() as folder:
        status = recorder.control("start", {"output": str(Path(folder) / "t.moetrace")})
        assert status["recording"], status
        spent = [_step(recorder, buffer, runner, number, pause_s) for number in range(steps)]
        before = time.process_time() - time.thread_time()
        spent += [_step(recorder, buffer, runner, number, pause_s) for number in range(steps)]
        writer_s = time.process_time() - time.thread_time() - before
        status = recorder.control("status")
        recorder.close()
    assert not status["dropped"] and status["error"] is None, status
    return float(np.median(spent[steps:])), writer_s / steps


def _step(
    recorder: WorkerRecorder, buffer: StepBuffer, runner: Runner, number: int, pause_s: float
) -> float:
    """Seconds around one forward; the forward itself is a sleep, and the rows are there."""
    arrivals = runner.names if not recorder.steps else []
    scheduled: Any = SimpleNamespace(
        total_num_scheduled_tokens=len(runner.names),
        num_scheduled_tokens=dict.fromkeys(runner.names, 1),
        scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in arrivals],
        finished_req_ids=set(),
    )
    started = time.perf_counter()
    recorder.before(scheduled, False)
    before_s = time.perf_counter() - started
    for slot in range(buffer.layout.layers):
        buffer.rows[: len(runner.names), buffer.words(slot)] = torch.arange(4, dtype=torch.int16)
    time.sleep(pause_s)
    started = time.perf_counter()
    recorder.after(runner, scheduled)
    return before_s + time.perf_counter() - started


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
