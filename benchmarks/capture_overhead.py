"""What recording costs the model that is recorded: decode tokens/s without, with, and beside
transformers' own `output_router_logits=True`.

    python benchmarks/capture_overhead.py [--batch 8] [--steps 96] [--rounds 12] [--model FOLDER]

The toy is the model that ships for the demo, on one CPU thread. Two figures a way: wall time, best
of the rounds in turn; and CPU time of the whole process, which counts the writer thread too and
does not see who else is on the machine.
"""

from __future__ import annotations

import argparse
import importlib.resources
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers

import moeprof

PROMPT = 64


def main() -> None:
    """Print milliseconds a step and the ratios to the model alone."""
    args = parse()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    toy = importlib.resources.files("moeprof.demo") / "tiny_m3"
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model or str(toy)).eval()
    prompt = torch.randint(3, 60, (args.batch, PROMPT), generator=torch.Generator().manual_seed(0))
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    traces = (folder / f"{number}.moetrace" for number in range(10_000))

    def recording() -> AbstractContextManager[Any]:
        return moeprof.record(model, next(traces))

    ways: dict[str, tuple[Callable[[], AbstractContextManager[Any]], dict[str, Any]]] = {
        "off": (nullcontext, {}),
        "recording": (recording, {}),
        "output_router_logits": (nullcontext, {"output_router_logits": True}),
    }
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, (context, options) in ways.items():
            with context():
                seconds, cpu_seconds = decode(model, prompt, args.steps, options)
            wall[way].append(seconds / args.steps)
            cpu[way].append(cpu_seconds / args.steps)
    for way in ways:
        best, median = min(wall[way]), statistics.median(cpu[way])
        print(
            f"{way:22} {args.batch / best:8.0f} tokens/s  wall {best * 1e3:7.3f} ms a step "
            f"({best / min(wall['off']) - 1:+7.2%})  CPU {median * 1e3:7.3f} ms "
            f"({median / statistics.median(cpu['off']) - 1:+7.2%})"
        )


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--model", help="a model folder instead of the toy")
    return parser.parse_args()


@torch.inference_mode()
def decode(
    model: Any, prompt: torch.Tensor, steps: int, options: dict[str, Any]
) -> tuple[float, float]:
    """Wall and CPU seconds of `steps` greedy decode steps."""
    cache = transformers.DynamicCache(config=model.config)
    token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        token = model(token, past_key_values=cache, **options).logits[:, -1:].argmax(-1)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
