"""What a call of `generate` says: where its prompts end and which tokens end a row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from moeprof.capture.transformers.requests.tracker import GenerateCall

if TYPE_CHECKING:
    import torch


def read_generate_call(
    model: torch.nn.Module, generate: Callable[..., Any], args: Any, kwargs: Any
) -> GenerateCall:
    """What `generate(*args, **kwargs)` of `model` will do, as far as recording needs it."""
    bound = inspect.signature(generate).bind_partial(*args, **kwargs).arguments
    given = {**bound.pop("kwargs", {}), **bound}
    ids = given.get("input_ids") if given.get("inputs") is None else given["inputs"]
    embeds = given.get("inputs_embeds")
    prompt = embeds if embeds is not None else ids
    only_embeds = embeds is not None and ids is None
    return GenerateCall(
        prompt_columns=None if prompt is None else int(prompt.shape[1]),
        returned_columns=0 if only_embeds else None if ids is None else int(ids.shape[1]),
        stop_ids=_stop_ids(model, given),
        beams=int(_setting(model, given, "num_beams") or 1),
        returned=int(_setting(model, given, "num_return_sequences") or 1),
    )


def new_tokens_of(call: GenerateCall, output: Any) -> torch.Tensor | None:
    """[requests, columns] of `output`, which `generate` returned, behind the prompts."""
    sequences = getattr(output, "sequences", output)
    new = count_new_tokens(call, output)
    return None if new is None else sequences[:, sequences.shape[1] - new :]


def count_new_tokens(call: GenerateCall, output: Any) -> int | None:
    """The most tokens that a row of `output`, which `generate` returned, has after its prompt."""
    sequences = getattr(output, "sequences", output)
    if call.stream is None or getattr(sequences, "ndim", 0) != 2:
        return None
    prompt = call.returned_columns
    if prompt is None:
        prompt = call.stream.batch.prompt_width
    return max(0, int(sequences.shape[1]) - prompt)


def _stop_ids(model: torch.nn.Module, given: dict[str, Any]) -> tuple[int, ...]:
    """Ids that, fed back to the model, say that their row is done.

    A finished row is fed its end-of-sequence token and then padding until the batch is done.
    Padding alone tells only where rows can end by other criteria, such as stop strings: without
    those it is a token like others, that a model may well choose.
    """
    ends = _ids(_setting(model, given, "eos_token_id"))
    if not ends:
        return ()
    if given.get("stopping_criteria") or _setting(model, given, "stop_strings"):
        ends += _ids(_setting(model, given, "pad_token_id"))
    return tuple(dict.fromkeys(ends))


def _setting(model: torch.nn.Module, given: dict[str, Any], name: str) -> Any:
    """A generation setting, with the priorities of `generate` itself."""
    if name in given:
        return given[name]
    for config in (given.get("generation_config"), getattr(model, "generation_config", None)):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids given as none, one, a list or a tensor (on the CPU: generate reads it too)."""
    if value is None:
        return ()
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(int(v) for v in value) if isinstance(value, Iterable) else (int(value),)
