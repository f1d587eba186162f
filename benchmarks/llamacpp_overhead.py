"""What recording costs llama.cpp: tokens/s without a callback, with ours, and with a Python one.

    python benchmarks/llamacpp_overhead.py [MODEL.gguf] [--prompt 256] [--new 64] [--rounds 5]

Without a model it writes one of random weights: 60 layers, of which 57 route to 4 of 128 experts,
like MiniMax-M3, and 256 wide, so that a token takes some 20 ms where M3's would take
hundreds: what recording adds to a token depends on the layers, not on their width. The ways take
turns, each has its best round, and its ratio to the round without a callback just before. On a
machine that others use, `--clock cpu` counts the seconds of all our threads instead.
Last it says what loading the callback adds to a start.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from moeprof.capture.limits import Limits
from moeprof.capture.llamacpp.engine import Engine, EvalCallback
from moeprof.capture.llamacpp.generation import generate
from moeprof.capture.llamacpp.ggml import Ggml
from moeprof.capture.llamacpp.listener import Listener
from moeprof.capture.llamacpp.reading import LogReader
from moeprof.capture.llamacpp.tap import Tap, compiled_callback, wanted_results
from moeprof.capture.llamacpp.traffic import DecodedHandler
from moeprof.capture.pipeline import MAX_PENDING_BYTES, open_pipeline
from moeprof.model.gguf_model import read_gguf_model
from moeprof.trace import TraceWriter

LAYERS, DENSE, EXPERTS, TOP_K, WIDTH, INNER, VOCABULARY = 60, 3, 128, 4, 256, 32, 512
KEYS: dict[str, int | float | bool] = {
    "block_count": LAYERS,
    "context_length": 65536,
    "embedding_length": WIDTH,
    "feed_forward_length": 4 * INNER,
    "expert_count": EXPERTS,
    "expert_used_count": TOP_K,
    "expert_feed_forward_length": INNER,
    "expert_shared_count": 1,
    "expert_gating_func": 2,  # sigmoid
    "expert_weights_norm": True,
    "expert_weights_scale": 2.0,
    "leading_dense_block_count": DENSE,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 32,
    "attention.indexer.top_k": 16,
    "attention.indexer.block_size": 128,
    "attention.indexer.local_blocks": 1,
    "rope.dimension_count": 16,
    "rope.freq_base": 10000.0,
}
ATTENTION: dict[str, tuple[int, ...]] = {
    "attn_q.weight": (256, WIDTH),
    "attn_k.weight": (128, WIDTH),
    "attn_v.weight": (128, WIDTH),
    "attn_output.weight": (WIDTH, 256),
    "attn_norm.weight": (WIDTH,),
    "ffn_norm.weight": (WIDTH,),
    "attn_q_norm.weight": (32,),
    "attn_k_norm.weight": (32,),
}
DENSE_FFN: dict[str, tuple[int, ...]] = {
    "ffn_gate.weight": (4 * INNER, WIDTH),
    "ffn_up.weight": (4 * INNER, WIDTH),
    "ffn_down.weight": (WIDTH, 4 * INNER),
}
ROUTED: dict[str, tuple[int, ...]] = {
    "ffn_gate_inp.weight": (EXPERTS, WIDTH),
    "exp_probs_b.bias": (EXPERTS,),
    "ffn_gate_exps.weight": (EXPERTS, INNER, WIDTH),
    "ffn_up_exps.weight": (EXPERTS, INNER, WIDTH),
    "ffn_down_exps.weight": (EXPERTS, WIDTH, INNER),
    "ffn_gate_shexp.weight": (INNER, WIDTH),
    "ffn_up_shexp.weight": (INNER, WIDTH),
    "ffn_down_shexp.weight": (WIDTH, INNER),
    "indexer.q_proj.weight": (128, WIDTH),
    "indexer.k_proj.weight": (32, WIDTH),
    "indexer.q_norm.weight": (32,),
    "indexer.k_norm.weight": (32,),
}


Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Print tokens/s of each way and the ratio to llama.cpp alone, for prefill and decode."""
    args = parse()
    folder = Path(tempfile.mkdtemp())
    path = args.model or write_model(folder / "random.gguf")
    gguf = read_gguf_model(path)
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, args.prompt).tolist()
    results = wanted_results(gguf.model)
    tap = Tap(compiled_callback(Ggml()), gguf.model, results, 512)
    ways = {"alone": None, "recording": tap.callback, "asked in Python": python_callback()}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(args.rounds + 1):  # the first warms up
        for way, callback in ways.items():
            with closing(Engine(path)) as engine:
                engine.open_context(
                    context=args.prompt + args.new,
                    batch=512,
                    micro_batch=512,
                    threads=args.threads,
                    callback=callback,
                )
                trace = folder / f"{number}.moetrace"
                recorder = (gguf, tap, trace) if way == "recording" else None
                every = args.last_layer == "all"
                spent = run(engine, prompt, args.new, every, recorder, CLOCKS[args.clock])
                if number:
                    seconds[way].append(spent)
    report(seconds, args.prompt, args.new)
    report_start(folder)


def run(
    engine: Engine, prompt: list[int], new: int, every: bool, recorder: Any, clock: Clock
) -> tuple[float, float]:
    """Seconds of the prompt, and of each new token behind it."""
    engine.ends = lambda token: False  # type: ignore[method-assign]
    if recorder is None:
        return timed(engine, prompt, new, every, None, clock)
    gguf, tap, trace = recorder
    with open_pipeline(
        lambda: TraceWriter(trace, gguf.model),
        trace,
        lambda sink, latch: DecodedHandler(
            sink, latch, LogReader(gguf.model, wanted_results(gguf.model)), token_ids=False
        ),
        labels=None,
        max_pending_bytes=MAX_PENDING_BYTES,
        limits=Limits(),
    ) as pipeline:
        listener = Listener(pipeline, tap)
        listener.begin(len(prompt))
        spent = timed(engine, prompt, new, every, listener, clock)
    recording = pipeline.recording
    assert recording.error is None and recording.tokens == len(prompt) + new - 1, recording.error
    return spent


def timed(
    engine: Engine,
    prompt: list[int],
    new: int,
    every: bool,
    listener: Listener | None,
    clock: Clock,
) -> tuple[float, float]:
    """`generate`, with the time at which the first new token was there."""
    at: list[float] = [clock()]
    sample = engine.sample

    def note() -> int:
        token = sample()
        at.append(clock())
        return token

    engine.sample = note  # type: ignore[method-assign]
    generate(engine, prompt, new, None, listener, every=every)
    return at[1] - at[0], (at[-1] - at[1]) / (new - 1)


def report(seconds: dict[str, list[tuple[float, float]]], prompt: int, new: int) -> None:
    """A line a way and a phase."""
    for phase, tokens in (("prefill", prompt), ("decode", 1)):
        for way, rounds in seconds.items():
            each = [spent[phase == "decode"] for spent in rounds]
            alone = [spent[phase == "decode"] for spent in seconds["alone"]]
            ratios = [mine / theirs - 1 for mine, theirs in zip(each, alone, strict=True)]
            print(
                f"{phase:8} {way:16} {tokens / min(each):8.1f} tokens/s "
                f"{1e3 * min(each):8.3f} ms a {'prompt' if phase == 'prefill' else 'token'}, "
                f"median of ratios {statistics.median(ratios):+7.1%}"
            )


def report_start(folder: Path) -> None:
    """CPU seconds that loading the callback adds to a start: compiled, and then from Numba's cache.

    Each is a process of its own, less one that stops before it.
    """
    library = "from moeprof.capture.llamacpp.tap import Ggml, compiled_callback; ggml = Ggml(); "
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "numba")}

    def cpu_s(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    without = min(cpu_s(library) for _ in range(3))
    compiled = cpu_s(library + "compiled_callback(ggml)")
    cached = min(cpu_s(library + "compiled_callback(ggml)") for _ in range(3))
    print(
        f"start    the callback takes {compiled - without:.2f} s of CPU the first time, "
        f"{cached - without:.2f} s from Numba's cache; llama.cpp and imports {without:.2f} s"
    )


def python_callback() -> EvalCallback:
    """The usual way: every node is asked about in Python, the name fetched by a C call each."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = next(folder.glob("*ggml-base.so"))
    name = ctypes.CDLL(str(library)).ggml_get_name
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

    @llama_cpp.ggml_backend_sched_eval_callback
    def callback(tensor: int, ask: bool, state: Any) -> bool:
        return bool(name(tensor).startswith(b"ffn_moe_topk-"))

    return EvalCallback(ctypes.cast(callback, ctypes.c_void_p).value or 0, None, callback)


def write_model(path: Path) -> Path:
    """MiniMax-M3's layers and experts at a fraction of its width, random, in float16."""
    import gguf

    random = np.random.default_rng(0)
    out = gguf.GGUFWriter(path, "minimax-m3")
    adders = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32}
    for key, value in KEYS.items():
        adders[type(value)](f"minimax-m3.{key}", value)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([f"t{number}" for number in range(VOCABULARY)])
    out.add_token_types([1] * VOCABULARY)
    out.add_token_merges(["t 1"])
    out.add_eos_token_id(1)
    for name, shape in tensors():
        values = random.standard_normal(shape, np.float32) * 0.05 + name.endswith("norm.weight")
        full = len(shape) == 1 or "indexer" in name or "gate_inp" in name
        out.add_tensor(name, values.astype(np.float32 if full else np.float16))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, rows first."""
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    yield "output.weight", (VOCABULARY, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    for layer in range(LAYERS):
        shapes = ATTENTION | (ROUTED if layer >= DENSE else DENSE_FFN)
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}", shape


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF model instead of a random one")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: all threads'")
    parser.add_argument("--last-layer", choices=["all", "output"], default="all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
