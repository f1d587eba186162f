"""The routing in an answer of a serving engine, decoded: what reading files and capturing share.

Whoever wrote the answer may be broken or hostile, so nothing is unpickled, unpacked or reserved
before its size is known to be there; ValueError or KeyError says that it is no such answer.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import whole

_MOST_TOKENS = 1 << 31  # positions are 32 bits


@dataclass(frozen=True)
class Routed:
    """The routing of one generated sequence: T rows of consecutive tokens, from `start` on."""

    experts: NDArray[np.integer[Any]]  # [T, L, k]
    start: int = 0  # position of the first row
    prompt: int | None = None  # tokens of the prompt
    cached: int | None = None  # of these, the leading ones that came from the prefix cache
    repeated: int = 0  # prompt rows left out: another choice of the same request has them
    token_id: NDArray[np.int32] | None = None  # [T]

    @property
    def output(self) -> int | None:
        """Tokens generated, the last of which was never routed."""
        if self.prompt is None:
            return None
        return max(0, self.start + len(self.experts) - self.prompt + 1)


def vllm_sequences(response: Any, start: int | None = None) -> Iterator[Routed | None]:
    """One a choice of a vLLM response, None for a choice without routing.

    `start` is what was asked for as `routed_experts_prompt_start`; without it, it is worked out
    from the usage of a response with a single choice.
    """
    choices = response.get("choices", [response])
    for number, choice in enumerate(choices):
        value = choice.get("routed_experts")
        routed = None if value is None else _vllm_choice(response, choice, len(choices), start)
        yield routed if routed is None or not number else _without_prompt(routed)


def _vllm_choice(
    response: Mapping[str, Any], choice: Mapping[str, Any], choices: int, start: int | None
) -> Routed:
    value = choice["routed_experts"]
    experts = array_of(value)
    usage = response.get("usage") or {}
    prompt, completion = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    if response.get("prompt_routed_experts") is not None:  # vLLM 0.21: two arrays
        before = array_of(response["prompt_routed_experts"])
        experts = np.concatenate([before, experts])
        start, prompt = 0, len(before)
    elif isinstance(value, dict) and "start" in value:  # Dynamo
        start = _tokens(value, "start")
    if choices > 1:
        completion = None  # the usage adds the choices up
    start = _start(len(experts), prompt, completion, start)
    ids = _joined(choice.get("prompt_token_ids") or response.get("prompt_token_ids"), choice)
    cached = _tokens(usage.get("prompt_tokens_details") or {}, "cached_tokens")
    return Routed(experts, start, prompt, cached, token_id=_cut(ids, start, len(experts)))


def sglang_sequences(
    response: Any, layers: int, top_k: int, start: int | None = None
) -> Iterator[Routed | None]:
    """One a sequence of an SGLang response that has routing.

    Of several choices, the OpenAI endpoints give the routing of one; `/generate` answers with a
    list. The arrays have no shape: int32 of all `layers`, dense ones included, by `top_k`.
    """
    for number, item in enumerate(response if isinstance(response, list) else [response]):
        routed = _sglang_sequence(item, layers, top_k, start)
        yield routed if routed is None or not number else _without_prompt(routed)


def _sglang_sequence(
    response: Mapping[str, Any], layers: int, top_k: int, start: int | None
) -> Routed | None:
    meta = response.get("meta_info") or {}
    text = meta.get("routed_experts")
    if text is None:  # '' is an answer of no rows
        text = _sglang_extension(response)
    if text is None:
        return None
    usage = response.get("usage") or meta
    experts = _shaped(decoded(text), layers, top_k)
    prompt, completion = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    start = _start(len(experts), prompt, completion, start)
    details = usage.get("prompt_tokens_details") or {}
    cached = _tokens(details if "cached_tokens" in details else usage, "cached_tokens")
    return Routed(experts, start, prompt, cached)


def _sglang_extension(response: Mapping[str, Any]) -> str | None:
    """`sgl_ext` stands beside the choices or in the first, as `sglext` in older releases."""
    for place in (response, *response.get("choices", [])[:1]):
        for name in ("sgl_ext", "sglext"):
            text: str | None = (place.get(name) or {}).get("routed_experts")
            if text is not None:
                return text
    return None


def _shaped(data: bytes, layers: int, top_k: int) -> NDArray[np.int32]:
    if len(data) % (4 * layers * top_k):
        raise InputError(
            f"{len(data)} bytes are no whole rows of {layers} layers x top-{top_k}"
            " int32: is --model the model that was served?"
        )
    return np.frombuffer(data, "<i4").reshape(-1, layers, top_k)


def array_of(value: Any) -> NDArray[np.integer[Any]]:
    """[tokens, layers, k] of what an engine put into a response."""
    array: NDArray[Any]
    if isinstance(value, str):
        array = _npy_array(decoded(value))
    elif isinstance(value, dict):
        array = _wrapped_array(value)
    else:
        array = np.array(value)
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise ValueError(f"routed_experts is {array.dtype} {array.shape}, not [tokens, layers, k]")
    return array


def decoded(text: Any) -> bytes:
    """The bytes that base64 stands for, or base85 where it is no base64."""
    if not isinstance(text, str):
        raise ValueError(f"routed_experts is {type(text).__name__}, not base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return base64.b85decode(text)


def _wrapped_array(value: Mapping[str, Any]) -> NDArray[Any]:
    """Dynamo's `{data, shape, dtype}`: base64, or before June 2026 base85.

    Some texts are both; which was meant shows in the number of bytes.
    """
    dtype, text = np.dtype(str(value["dtype"])), value["data"]
    content = decoded(text)
    if len(content) != math.prod(int(n) for n in value["shape"]) * dtype.itemsize:
        content = base64.b85decode(text)
    return _filled(content, value["shape"], dtype)


def _npy_array(data: bytes) -> NDArray[Any]:
    """What an .npy holds, read without ever making the array that its header claims."""
    file = io.BytesIO(data)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("routed_experts is no .npy of version 1.0")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    content = data[file.tell() :]
    if fortran_order:
        return _filled(content, shape[::-1], dtype).T
    return _filled(content, shape, dtype)


def _filled(content: bytes, shape: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`content` as an array of `shape`. ValueError unless it is exactly that many integers."""
    sizes = tuple(int(n) for n in shape)
    if dtype.kind not in "iu" or min(sizes, default=0) < 0:
        raise ValueError(f"routed_experts is {dtype} {sizes}, not [tokens, layers, k] of integers")
    if math.prod(sizes) * dtype.itemsize != len(content):
        raise ValueError(f"routed_experts is {dtype} {sizes}, and {len(content):,} bytes")
    return np.frombuffer(content, dtype).reshape(sizes)


def _tokens(usage: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens, None where it is not given."""
    value = usage.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_TOKENS:
        raise ValueError(f"{name} is no number of tokens")
    return value


def _start(rows: int, prompt: int | None, completion: int | None, asked: int | None) -> int:
    """Position of the first row. ValueError if there are more rows than tokens were routed."""
    routed = None
    if prompt is not None and completion is not None:
        routed = prompt + max(completion, 1) - 1
    if asked and rows == routed:  # the server knows no start, and left nothing out
        return 0
    if routed is not None and rows + (asked or 0) > routed:
        raise ValueError(
            f"routed_experts has {rows:,} rows from {asked or 0:,} on, of {routed:,} routed tokens"
        )
    if asked is not None:
        return asked
    return 0 if routed is None else routed - rows


def _without_prompt(routed: Routed) -> Routed:
    """A further choice of a request: its prompt is the first choice's."""
    if routed.prompt is None:
        return routed
    repeated = min(max(0, routed.prompt - routed.start), len(routed.experts))
    ids = None if routed.token_id is None else routed.token_id[repeated:]
    return replace(
        routed,
        experts=routed.experts[repeated:],
        start=max(routed.start, routed.prompt),
        repeated=repeated,
        token_id=ids,
    )


def _joined(prompt: Any, choice: Mapping[str, Any]) -> NDArray[np.int32] | None:
    """Token ids of prompt and output, None unless both are there."""
    output = choice.get("token_ids")
    if not isinstance(prompt, list) or not isinstance(output, list):
        return None
    return whole(np.array(prompt + output))


def _cut(ids: NDArray[np.int32] | None, start: int, rows: int) -> NDArray[np.int32] | None:
    if ids is None:
        return None
    part = ids[start : start + rows]
    if len(part) != rows:
        raise ValueError(f"{len(ids):,} token ids for {rows:,} rows from {start:,} on")
    return part
