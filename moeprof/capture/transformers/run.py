"""Running prompts through a model with transformers, and recording it: `capture transformers`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.capture.limits import Limits
from moeprof.capture.prompts import Prompt, check_token_ids, read_prompts
from moeprof.capture.result import CaptureResult, check_numbers, check_output, settle
from moeprof.capture.transformers.record import describe_config, record
from moeprof.errors import InputError, MissingExtraError, MoeprofError

DTYPES = ("auto", "float32", "bfloat16", "float16")
Progress = Callable[[int, int], None]  # prompts done, prompts in all


@dataclass(frozen=True)
class Loaded:
    """A model, ready to generate."""

    model: Any
    tokenizer: Any
    name: str
    takes_padding: bool  # does a row compute the same with padding on its left?


def capture_transformers(
    model_path: str | Path,
    prompts: str | Path | Sequence[Prompt],
    output: str | Path,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    dtype: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    sample: bool = False,
    seed: int = 0,
    weights: bool = False,
    token_ids: bool = False,
    margins: bool = False,
    next_layer: bool = False,
    max_bytes: int | None = None,
    rotate: bool = False,
    duration_s: float | None = None,
    sample_requests: float | None = None,
    aggregate_steps: int | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> CaptureResult:
    """Generate from every prompt with the model in folder `model_path`, and record its routing.

    `prompts` is a file (see `read_prompts`) or what it holds; `output` becomes the trace.
    Prompts go in batches of up to `batch_size`, in order, padded on the left, and give up to
    `max_new_tokens` each; where padding would change what a model computes (MiniMax-M3's sparse
    attention), only neighbours of equal length share a batch. Generation is greedy, or with
    `sample` by the model's own sampling settings from `seed`, which also chooses requests if
    `sample_requests` is given. What is recorded and its limits are as in `record`. `device` is
    CUDA where there is one; `threads` are those of torch on the CPU, its own choice if None. A
    hub id instead of a folder is downloaded.

    Raises InputError for prompts, model or output that cannot be used, most of them before the
    model is loaded; MoeprofError if recording broke off (what was recorded stays).
    """
    check_numbers(batch_size=batch_size, max_new_tokens=max_new_tokens)
    check_numbers(threads=1 if threads is None else threads)
    Limits(max_bytes, rotate, duration_s, sample_requests, seed, aggregate_steps)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    wanted = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not wanted:
        raise InputError("there are no prompts")
    check_output(Path(output), force=force)
    loaded = _load(str(model_path), dtype, device, trust_remote_code=trust_remote_code)
    tokens = _tokenize(loaded, wanted, max_new_tokens)
    with (
        torch_threads(threads),
        record(
            loaded.model,
            output,
            labels=[prompt.label for prompt in wanted],
            weights=weights,
            token_ids=token_ids,
            margins=margins,
            next_layer=next_layer,
            force=force,
            max_bytes=max_bytes,
            rotate=rotate,
            duration_s=duration_s,
            sample_requests=sample_requests,
            seed=seed,
            aggregate_steps=aggregate_steps,
        ) as recording,
    ):
        settings = {"max_new_tokens": max_new_tokens, "do_sample": sample}
        _generate(loaded, tokens, batch_size, seed, settings, progress)
    return settle(recording, loaded.name, len(wanted))


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """torch on this many CPU threads, for as long as the body runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(threads or before, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load(source: str, dtype: str, device: str | None, *, trust_remote_code: bool) -> Loaded:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "capture") from None
    local = Path(source).is_dir()
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InputError(f"{source}: no such folder, and not a hub id (OWNER/NAME)")
    options = {"local_files_only": local, "trust_remote_code": trust_remote_code}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    transformers.utils.logging.disable_progress_bar()  # the caller shows progress
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        described = describe_config(config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model = model_class(config).from_pretrained(source, dtype=dtype, **options)
        model = model.to(device).eval()
    except MoeprofError:
        raise
    except Exception as error:  # whatever a model's files and its libraries may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source}: cannot be loaded on {device}: {reason[:300]}") from None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # M3's indexer, in transformers 5.23, chooses key blocks by column and not by position.
    return Loaded(model, tokenizer, described.name, takes_padding=described.indexer is None)


def model_class(config: Any) -> Any:
    """The auto class whose models generate text from `config`; MiniMax-M3's takes images too."""
    import transformers
    from transformers.models.auto import modeling_auto

    text_only = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if not text_only and type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _tokenize(loaded: Loaded, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
    """Token ids of every prompt. InputError where a prompt is empty or leaves no room."""
    config = loaded.model.config.get_text_config()
    encoded = [
        list(loaded.tokenizer(prompt.text)["input_ids"] if given is None else given)
        for prompt, given in ((prompt, prompt.token_ids) for prompt in prompts)
    ]
    most = getattr(config, "max_position_embeddings", None)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise InputError(f"{prompt.place}: has no tokens in this model's vocabulary")
        check_token_ids(prompt, config.vocab_size)
        if most is not None and len(ids) + max_new_tokens > most:
            raise InputError(
                f"{prompt.place}: {len(ids)} tokens and {max_new_tokens} new ones exceed the "
                f"model's {most} positions: shorten it or lower max_new_tokens"
            )
    return encoded


def _generate(
    loaded: Loaded,
    tokens: Sequence[list[int]],
    batch_size: int,
    seed: int,
    settings: dict[str, Any],
    progress: Progress | None,
) -> None:
    import torch

    done = 0
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for batch in _batches(tokens, batch_size, equal_lengths=not loaded.takes_padding):
            padded = loaded.tokenizer.pad({"input_ids": batch}, padding=True, return_tensors="pt")
            loaded.model.generate(
                input_ids=padded["input_ids"].to(loaded.model.device),
                attention_mask=padded["attention_mask"].to(loaded.model.device),
                pad_token_id=loaded.tokenizer.pad_token_id,
                **settings,
            )
            done += len(batch)
            if progress is not None:
                progress(done, len(tokens))


def _batches(
    tokens: Sequence[list[int]], size: int, *, equal_lengths: bool
) -> Iterator[list[list[int]]]:
    """Neighbouring prompts, up to `size` together."""
    batch: list[list[int]] = []
    for ids in tokens:
        if batch and (len(batch) == size or (equal_lengths and len(ids) != len(batch[0]))):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch
