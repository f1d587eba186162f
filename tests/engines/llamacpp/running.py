"""Captures as the tests of llama.cpp make them, and an oracle that reads it another way."""

from __future__ import annotations

import ctypes
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import moeprof
from moeprof.capture import Prompt
from moeprof.capture.llamacpp.engine import Engine, EvalCallback
from moeprof.capture.llamacpp.generation import generate

PROMPTS = [
    Prompt("def add(a, b):\n    return a", "code"),
    Prompt("Once upon a time there was a small dragon who " * 8, "tale"),
    Prompt("x", None),
]
SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "batch": 32, "micro_batch": 8, "threads": 1}


def capture(model: Path, output: Path, **options: Any) -> moeprof.Trace:
    """The trace of PROMPTS, several calls a prompt and several micro-batches a call."""
    prompts = options.pop("prompts", PROMPTS)
    moeprof.capture_llamacpp(model, prompts, output, **{**SETTINGS, **options})
    return moeprof.open_trace(output)


def tokens_without_us(model: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What the engine generates when nothing listens: no callback is installed."""
    with closing(Engine(model)) as engine:
        engine.open_context(context=512, batch=32, micro_batch=8, threads=1)
        return [generate(engine, prompt, SETTINGS["max_new_tokens"], None) for prompt in prompts]


def read_whole(model: Path, tokens: list[int], names: set[str]) -> dict[str, NDArray[Any]]:
    """Tensors of one prompt in one graph by name, [tokens, columns], by llama.cpp's own accessors.

    None of our reading is used: tensors are copied from where ggml says they are, as if they were
    contiguous. Those of ids are int32, all others float32.
    """
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    ggml.ggml_get_name.restype = ctypes.c_char_p
    ggml.ggml_get_data.restype = ctypes.c_void_p
    for function in (ggml.ggml_get_name, ggml.ggml_get_data, ggml.ggml_nelements):
        function.argtypes = [ctypes.c_void_p]
    ggml.ggml_nelements.restype = ctypes.c_int64
    found: dict[str, NDArray[Any]] = {}

    @llama_cpp.ggml_backend_sched_eval_callback
    def callback(tensor: int, ask: bool, _: Any) -> bool:
        name = ggml.ggml_get_name(tensor).decode()
        if name in names and not ask:
            count = ggml.ggml_nelements(tensor)
            kind = ctypes.c_int32 if "topk" in name else ctypes.c_float
            values = (kind * count).from_address(ggml.ggml_get_data(tensor))
            found[name] = np.array(values).reshape(len(tokens), -1)
        return name in names

    with closing(Engine(model)) as engine:
        function = ctypes.cast(callback, ctypes.c_void_p).value
        engine.open_context(
            context=512,
            batch=512,
            micro_batch=512,
            threads=1,
            callback=EvalCallback(function or 0, None, callback),
        )
        engine.start(None)
        engine.decode(tokens, 0, np.ones(len(tokens), bool))
    return found
