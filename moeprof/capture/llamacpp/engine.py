"""llama.cpp itself: a model, a context with our callback, and one sequence at a time.

The C functions are called as llama-cpp-python declares them. Its `Llama` class takes no callback,
reuses prefixes of earlier prompts, and holds logits of the whole context where all are asked for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import import_llama_cpp
from moeprof.capture.llamacpp.messages import Messages
from moeprof.errors import InputError, MoeprofError

CACHE_TYPES = {"f16": 1, "f32": 0, "bf16": 30, "q8_0": 8, "q4_0": 2}  # ggml_type


@dataclass(frozen=True)
class Sampling:
    """llama.cpp's own chain of samplers, with its defaults; greedy at temperature 0."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class EvalCallback:
    """What llama.cpp calls with every node of a graph, and what it passes along.

    Addresses: `function` of a `ggml_backend_sched_eval_callback`, which is given `data`. A context
    keeps `owner` alive, to which the memory behind both belongs.
    """

    function: int
    data: int | None
    owner: Any


class Engine:
    """A loaded model. `decode` runs tokens of the one sequence, `sample` draws its next token.

    Raises InputError, with llama.cpp's own words, where it will not load.
    """

    def __init__(self, path: Path, *, gpu_layers: int | None = None) -> None:
        self._c = import_llama_cpp()
        self._c.llama_backend_init()
        params = self._c.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        self._context: Any = None
        self._callback: EvalCallback | None = None
        self._sampler: Any = None
        self._log = Messages(self._c)
        with self._log.caught():
            self._model = self._c.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise InputError(f"{path}: llama.cpp cannot load it: {self._log.reason}")
        self._vocabulary = self._c.llama_model_get_vocab(self._model)
        self.positions = int(self._c.llama_model_n_ctx_train(self._model))
        if self._c.llama_model_has_encoder(self._model):
            self.close()
            raise InputError(f"{path}: has an encoder, only decoders are recorded")

    def open_context(
        self,
        *,
        context: int,
        batch: int,
        micro_batch: int,
        threads: int | None = None,
        cache_type: str = "f16",
        callback: EvalCallback | None = None,
    ) -> None:
        """Room for `context` tokens, run `batch` a call and `micro_batch` a graph.

        `cache_type`, of CACHE_TYPES, is that of keys and values.
        """
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, batch, micro_batch
        params.n_seq_max = 1
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        if threads is not None:
            params.n_threads = params.n_threads_batch = threads
        if callback is not None:
            kind = self._c.ggml_backend_sched_eval_callback
            params.cb_eval = ctypes.cast(callback.function, kind)
            params.cb_eval_user_data = callback.data
            self._callback = callback
        with self._log.caught():
            self._context = self._c.llama_init_from_model(self._model, params)
        if not self._context:
            raise InputError(
                f"llama.cpp has no room for a context of {context:,} tokens: {self._log.reason}"
            )
        self.batch = int(self._c.llama_n_batch(self._context))

    def tokenize(self, text: str, *, chat: bool = False) -> list[int]:
        """Ids of `text`, with what the vocabulary puts before it; `chat`: special tokens count."""
        raw = text.encode()
        room = len(raw) + 16
        ids = (self._c.llama_token * room)()
        count = self._c.llama_tokenize(self._vocabulary, raw, len(raw), ids, room, not chat, chat)
        if count < 0:
            raise MoeprofError(f"llama.cpp needs {-count} tokens for {len(raw)} bytes of text")
        return list(ids[:count])

    def chat(self, text: str) -> str:
        """`text` as a user's message in the model's own chat template. InputError without one."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._c.llama_model_chat_template(self._model, None)
        if not template:
            raise InputError("this model has no chat template: leave --chat away")
        begin, end = (
            self._piece(token)
            for token in (
                self._c.llama_vocab_bos(self._vocabulary),
                self._c.llama_vocab_eos(self._vocabulary),
            )
        )
        formatter = Jinja2ChatFormatter(template.decode(), eos_token=end, bos_token=begin)
        return str(formatter(messages=[{"role": "user", "content": text}]).prompt)

    def _piece(self, token: int) -> str:
        text = self._c.llama_vocab_get_text(self._vocabulary, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def start(self, sampling: Sampling | None) -> None:
        """Begin a sequence: nothing is cached, and the sampler is seeded anew. None is greedy."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._free_sampler()
        chain = self._c.llama_sampler_chain_init(self._c.llama_sampler_chain_default_params())
        self._sampler = chain
        if sampling is None or sampling.temperature == 0:
            self._c.llama_sampler_chain_add(chain, self._c.llama_sampler_init_greedy())
            return
        for sampler in (
            self._c.llama_sampler_init_top_k(sampling.top_k),
            self._c.llama_sampler_init_top_p(sampling.top_p, 1),
            self._c.llama_sampler_init_min_p(sampling.min_p, 1),
            self._c.llama_sampler_init_temp(sampling.temperature),
            self._c.llama_sampler_init_dist(sampling.seed % (1 << 32)),
        ):
            self._c.llama_sampler_chain_add(chain, sampler)

    def decode(self, tokens: Sequence[int], position: int, outputs: NDArray[np.bool_]) -> None:
        """Run the sequence's next tokens, the first at `position`; logits where `outputs`."""
        count = len(tokens)
        ids = (self._c.llama_token * count)(*tokens)
        places = (self._c.llama_pos * count)(*range(position, position + count))
        wanted = (ctypes.c_int8 * count)(*outputs.tolist())
        batch = self._c.llama_batch(count, ids, None, places, None, None, wanted)
        with self._log.caught():
            code = self._c.llama_decode(self._context, batch)
        if code:
            raise MoeprofError(
                f"llama.cpp could not run {count} tokens ({code}): {self._log.reason}"
            )

    def sample(self) -> int:
        """The next token, from the last logits."""
        return int(self._c.llama_sampler_sample(self._sampler, self._context, -1))

    def ends(self, token: int) -> bool:
        """Whether generation ends with `token`."""
        return bool(self._c.llama_vocab_is_eog(self._vocabulary, token))

    def close(self) -> None:
        """Free everything."""
        self._free_sampler()
        with self._log.caught():
            if self._context:
                self._c.llama_free(self._context)
            if self._model:
                self._c.llama_model_free(self._model)
        self._context = self._model = self._callback = None

    def _free_sampler(self) -> None:
        if self._sampler:
            self._c.llama_sampler_free(self._sampler)
        self._sampler = None
