"""Running prompts through a GGUF model with llama.cpp, and recording it: `capture llamacpp`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from moeprof.capture.failure import FailureLatch
from moeprof.capture.limits import Limits
from moeprof.capture.llamacpp.engine import CACHE_TYPES, Engine, Sampling
from moeprof.capture.llamacpp.generation import generate
from moeprof.capture.llamacpp.ggml import Ggml
from moeprof.capture.llamacpp.listener import Listener
from moeprof.capture.llamacpp.reading import LogReader
from moeprof.capture.llamacpp.tap import Tap, compiled_callback, wanted_results
from moeprof.capture.llamacpp.traffic import DecodedHandler
from moeprof.capture.pipeline import MAX_PENDING_BYTES, Pipeline, open_pipeline
from moeprof.capture.prompts import Prompt, check_texts, read_prompts
from moeprof.capture.result import CaptureResult, check_numbers, check_output, settle
from moeprof.capture.sink import TraceSink
from moeprof.errors import InputError
from moeprof.model.gguf_model import GgufModel, read_gguf_model
from moeprof.trace import TraceWriter

Progress = Callable[[int, int], None]  # prompts done, prompts in all
_BLOCK = 256  # llama.cpp rounds a context up to a multiple of it


def capture_llamacpp(
    model_path: str | Path,
    prompts: str | Path | Sequence[Prompt],
    output: str | Path,
    *,
    max_new_tokens: int = 64,
    chat: bool = False,
    sample: bool = False,
    temperature: float = 0.8,
    seed: int = 0,
    context: int | None = None,
    batch: int = 512,
    micro_batch: int = 512,
    gpu_layers: int | None = None,
    threads: int | None = None,
    cache_type: str = "f16",
    last_layer: str = "all",
    weights: bool = False,
    token_ids: bool = False,
    margins: bool = False,
    max_bytes: int | None = None,
    rotate: bool = False,
    duration_s: float | None = None,
    sample_requests: float | None = None,
    aggregate_steps: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CaptureResult:
    """Generate from every prompt with the model in a GGUF file, and record its routing.

    `prompts` is a file (see `read_prompts`) or what it holds, with `chat` put into the model's
    own chat template; `output` becomes the trace. Prompts run one after the other, `batch` tokens
    a call and `micro_batch` a graph, and give up to `max_new_tokens` each. Generation is greedy,
    or with `sample` by llama.cpp's default samplers from `seed` plus the prompt's number.
    `context` is by default what the longest prompt needs, `gpu_layers` and `threads` are
    llama.cpp's own choice, keys and values are cached as `cache_type`.

    llama.cpp computes a prompt's last layer only where logits are asked for. With
    `last_layer="all"` they are asked for everywhere, so that every layer of every token is
    recorded; with "output" only at the prompt's end, as without us: the last layer is then not
    recorded for the other prompt tokens.

    What is recorded beside the ids and the limits are as in `record`; once `duration_s` is over
    no more is generated.

    The tokens are those that llama.cpp would give without us, whatever happens here.

    Raises InputError for prompts, model or output that cannot be used; MissingExtraError without
    llama-cpp-python; MoeprofError if recording broke off (what was recorded stays).
    """
    numbers = {"max_new_tokens": max_new_tokens, "batch": batch, "micro_batch": micro_batch}
    optional = {"threads": threads, "context": context}
    check_numbers(**numbers, **{name: n for name, n in optional.items() if n is not None})
    _check_choice("last_layer", last_layer, ("all", "output"))
    _check_choice("cache_type", cache_type, CACHE_TYPES)
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature is {temperature}, it must be at least 0")
    limits = Limits(max_bytes, rotate, duration_s, sample_requests, seed, aggregate_steps)
    wanted = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not wanted:
        raise InputError("there are no prompts")
    check_texts(wanted)
    check_output(Path(output), force=force)
    gguf = read_gguf_model(model_path)
    results = wanted_results(gguf.model, weights=weights, margins=margins)
    function = compiled_callback(Ggml())
    with closing(Engine(gguf.path, gpu_layers=gpu_layers)) as engine:
        tokens = _tokenize(engine, wanted, chat=chat)
        room = _room(tokens, wanted, max_new_tokens, context, engine.positions)
        tap = Tap(function, gguf.model, results, min(batch, room))
        engine.open_context(
            context=room,
            batch=min(batch, room),
            micro_batch=min(micro_batch, batch, room),
            threads=threads,
            cache_type=cache_type,
            callback=tap.callback,
        )
        with _open_recording(
            output,
            gguf,
            results,
            limits,
            labels=[prompt.label for prompt in wanted],
            weights=weights,
            token_ids=token_ids,
            margins=margins,
            force=force,
        ) as pipeline:
            listener = Listener(pipeline, tap)
            _run_prompts(
                engine,
                tokens,
                listener,
                sampling=Sampling(temperature, seed=seed) if sample else None,
                max_new_tokens=max_new_tokens,
                every=last_layer == "all",
                progress=progress,
            )
    return settle(pipeline.recording, gguf.model.name, listener.requests)


def _run_prompts(
    engine: Engine,
    prompts: Sequence[list[int]],
    listener: Listener,
    *,
    sampling: Sampling | None,
    max_new_tokens: int,
    every: bool,
    progress: Progress | None,
) -> None:
    """One after the other, until the recording ends."""
    for number, ids in enumerate(prompts):
        chosen = sampling and replace(sampling, seed=sampling.seed + number)
        listener.begin(len(ids))
        new = generate(engine, ids, max_new_tokens, chosen, listener, every=every)
        listener.finish(len(new))
        if progress is not None:
            progress(number + 1, len(prompts))
        if listener.pipeline.recording.ended:
            return


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}, it must be one of {', '.join(choices)}")


def _tokenize(engine: Engine, prompts: Sequence[Prompt], *, chat: bool) -> list[list[int]]:
    texts = [engine.chat(prompt.text) if chat else prompt.text for prompt in prompts]
    return [engine.tokenize(text, chat=chat) for text in texts]


def _room(
    tokens: Sequence[list[int]],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    context: int | None,
    positions: int,
) -> int:
    """Tokens the context must hold. InputError where a prompt is empty or does not fit."""
    most = context or positions
    for prompt, ids in zip(prompts, tokens, strict=True):
        if not ids:
            raise InputError(f"{prompt.place}: has no tokens in this model's vocabulary")
        if len(ids) + max_new_tokens > most:
            raise InputError(
                f"{prompt.place}: {len(ids)} tokens and {max_new_tokens} new ones exceed "
                f"{most:,} positions: shorten it, lower max_new_tokens or raise context"
            )
    longest = max(len(ids) for ids in tokens) + max_new_tokens
    return context or min(positions, -(-longest // _BLOCK) * _BLOCK)


def _open_recording(
    path: str | Path,
    gguf: GgufModel,
    results: dict[str, tuple[str, ...]],
    limits: Limits,
    *,
    labels: Sequence[str | None],
    weights: bool,
    token_ids: bool,
    margins: bool,
    force: bool,
) -> AbstractContextManager[Pipeline]:
    def open_writer() -> TraceWriter:
        return TraceWriter(
            path,
            gguf.model,
            engine="llama.cpp",
            engine_version=f"llama-cpp-python {version('llama-cpp-python')}",
            weights=weights,
            margins=margins,
            token_ids=token_ids,
            rank_ordered=True,
            expert_bytes=gguf.expert_bytes,
            force=force,
            max_bytes=limits.max_bytes,
            rotate=limits.rotate,
            sampling=limits.sampling,
            aggregate_steps=limits.aggregate_steps,
        )

    def open_handler(sink: TraceSink, latch: FailureLatch) -> DecodedHandler:
        reader = LogReader(gguf.model, results)
        return DecodedHandler(sink, latch, reader, token_ids=token_ids)

    return open_pipeline(
        open_writer,
        path,
        open_handler,
        labels=labels,
        max_pending_bytes=MAX_PENDING_BYTES,
        limits=limits,
    )
