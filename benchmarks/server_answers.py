"""How fast answers of a server become rows: JSON, base64, checks and cleaning of one answer.

One thread, an answer of MiniMax-M3 as vLLM sends it (60 layers, top-4, uint8, .npy). Prints tokens
a second, and how much of the time is the bound: parsing the JSON and the base64, and no more.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import time
from collections.abc import Callable

import numpy as np

from moeprof.capture.server.answers import answered
from moeprof.capture.server.asking import Asking
from moeprof.capture.server.capture import ENGINES
from moeprof.model import MoEModel
from moeprof.trace.formats.block import Findings


def answer(model: MoEModel, prompt: int, output: int) -> bytes:
    """The body of a response, as JSON."""
    rows = prompt + output - 1
    random = np.random.default_rng(0)
    first = random.integers(0, model.experts - model.top_k, (rows, model.layers, 1))
    ids = (first + np.arange(model.top_k)).astype(np.uint8)
    ids[:, [n for n in range(model.layers) if n not in model.moe_layers]] = 0
    file = io.BytesIO()
    np.save(file, ids)
    choice = {"index": 0, "routed_experts": base64.b64encode(file.getvalue()).decode()}
    usage = {"prompt_tokens": prompt, "completion_tokens": output}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def parsed(body: bytes) -> bytes:
    """What any reader of the answer must do."""
    return base64.b64decode(json.loads(body)["choices"][0]["routed_experts"])


def best_of(rounds: int, action: Callable[[], object]) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model, asking = MoEModel.preset("minimax-m3"), Asking()
    print("prompt + output      answer     tokens/s   bound / whole")
    for prompt, output in ((1_000, 256), (32_000, 256)):
        body = answer(model, prompt, output)
        bound = best_of(rounds, lambda body=body: parsed(body))
        whole = best_of(
            rounds,
            lambda body=body: answered(
                json.loads(body), ENGINES["vllm"], asking, model, Findings()
            ),
        )
        tokens = prompt + output - 1
        print(
            f"{prompt:>6,} + {output:<6,} {len(body) / 1e6:>9.1f} MB {tokens / whole:>12,.0f}"
            f"   {bound / whole:>13.0%}"
        )


if __name__ == "__main__":
    main()
