"""What recording costs the model that is recorded: decode tokens/s without, with, and beside
transformers' own `output_router_logits=True`.

    python benchmarks/capture_overhead.py [--batch 8] [--steps 48] [--rounds 40] [--model FOLDER]

The toy is the model that ships for the demo, on one CPU thread. The three take turns; each has its
best round, and its ratios to the round without recording just before.
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
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, (context, options) in ways.items():
            with context():
                seconds[way].append(decode(model, prompt, args.steps, options) / args.steps)
    for way, each in seconds.items():
        ratios = [mine / alone - 1 for mine, alone in zip(each, seconds["off"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{way:22} {args.batch / min(each):7.0f} tokens/s  {min(each) * 1e3:7.3f} ms a step "
            f"({min(each) / min(seconds['off']) - 1:+6.1%}); to the same round off: median "
            f"{middle:+6.1%}, quartiles {low:+6.1%} {high:+6.1%}"
        )


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--model", help="a model folder instead of the toy")
    return parser.parse_args()


@torch.inference_mode()
def decode(model: Any, prompt: torch.Tensor, steps: int, options: dict[str, Any]) -> float:
    """Seconds of `steps` greedy decode steps."""
    cache = transformers.DynamicCache(config=model.config)
    token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    started = time.perf_counter()
    for _ in range(steps):
        token = model(token, past_key_values=cache, **options).logits[:, -1:].argmax(-1)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
