"""Servers that speak vLLM's and SGLang's routing protocols, with made-up routing.

What goes over the wire follows vllm 0.32.0 (entrypoints/openai/*/protocol.py and serving.py),
vLLM 0.21's two arrays, Dynamo's wrapper, and sglang 0.5.23 (srt/entrypoints/http_server.py,
openai/protocol.py, state_capturer/base.py). The engines themselves are not run here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.model import MoEModel
from tests.conftest import small_config

from .sockets import Request, send

MODEL = MoEModel.from_config(small_config(top_k=2))  # layers 1 to 3 of 4, 16 experts
Ids = NDArray[np.int64]


def routing_of(text: str, rows: int, choice: int = 0, model: MoEModel = MODEL) -> Ids:
    """[rows, MoE layers, k]: prompt rows hang on the text alone, later ones on the choice too."""
    prompt = len(text.encode())
    parts = []
    for salt, count in (("", min(rows, prompt)), (f"choice {choice}", max(0, rows - prompt))):
        digest = hashlib.sha256(f"{text}{salt}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        shape = (count, len(model.moe_layers), model.experts)
        parts.append(np.argsort(rng.random(shape), axis=2)[:, :, : model.top_k])
    return np.concatenate(parts)


def all_layers(ids: Ids, model: MoEModel = MODEL) -> Ids:
    """[rows, layers, k] with zeros in dense layers, as engines send it."""
    whole = np.zeros((len(ids), model.layers, model.top_k), ids.dtype)
    whole[:, list(model.moe_layers)] = ids
    return whole


def npy(array: NDArray[Any]) -> str:
    """As vllm.utils.serial_utils.numpy2base64 has it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")


def no_model(name: str) -> dict[str, Any]:
    message = f"The model `{name}` does not exist."
    return {"error": {"message": message, "type": "NotFoundError", "code": 404}}


@dataclass
class VllmServer:
    """Answers as `vllm serve` does; a token is a byte of the prompt."""

    model: MoEModel = MODEL
    dtype: str = "uint8"
    layout: str = "npy"  # or two-arrays, dynamo
    layers: str = "all"  # or moe
    enabled: bool = True
    cached: int | None = None  # of every prompt, where --enable-prompt-tokens-details says it
    root: str = "here/tiny"
    change: Callable[[Request, dict[str, Any]], object] | None = None  # what a broken server does
    token: str | None = None

    def __call__(self, request: Request, connection: socket.socket) -> None:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            send(connection, {"error": "Unauthorized"}, "401 Unauthorized")
        elif request.path == "/v1/models":
            card = {"id": "tiny", "object": "model", "owned_by": "vllm", "root": self.root}
            adapter = {**card, "id": "lora", "root": "/adapters/x", "parent": "tiny"}
            send(connection, {"object": "list", "data": [adapter, {**card, "parent": None}]})
        elif request.path == "/version":
            send(connection, {"version": "0.32.0"})
        elif request.path in ("/v1/completions", "/v1/chat/completions"):
            self._complete(request, connection)
        else:
            send(connection, {"detail": "Not Found"}, "404 Not Found")

    def _complete(self, request: Request, connection: socket.socket) -> None:
        body = request.json()
        chat = request.path.startswith("/v1/chat")
        text = "<user>" + body["messages"][0]["content"] if chat else body["prompt"]
        start = body.get("routed_experts_prompt_start", 0)
        prompt = len(text.encode())
        if body["model"] != "tiny":
            send(connection, no_model(body["model"]), "404 Not Found")
            return
        if start > prompt:
            message = f"routed_experts_prompt_start must be between 0 and {prompt}"
            error = {"message": message, "type": "BadRequestError", "code": 400}
            send(connection, {"error": error}, "400 Bad Request")
            return
        answer = self._answer(text, body, start, chat)
        if self.change is not None:
            self.change(request, answer)
        send(connection, answer)

    def _answer(self, text: str, body: dict[str, Any], start: int, chat: bool) -> dict[str, Any]:
        prompt, output, n = len(text.encode()), body["max_tokens"], body.get("n", 1)
        with_ids = body.get("return_token_ids")
        prompt_ids = list(text.encode()) if with_ids else None
        details = None if self.cached is None else {"cached_tokens": min(self.cached, prompt - 1)}
        answer: dict[str, Any] = {
            "id": "cmpl-1",
            "object": "chat.completion" if chat else "text_completion",
            "model": "tiny",
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": output * n,
                "total_tokens": prompt + output * n,
                "prompt_tokens_details": details,
            },
        }
        choices: list[dict[str, Any]] = []
        for index in range(n):
            ids = routing_of(text, prompt + output - 1, index, self.model)
            array = (all_layers(ids, self.model) if self.layers == "all" else ids)[start:]
            choice: dict[str, Any] = {
                "index": index,
                "finish_reason": "length",
                "token_ids": [200 + index] * output if with_ids else None,
                "routed_experts": self._wrapped(array, prompt, start) if self.enabled else None,
            }
            if chat:
                choice["message"] = {"role": "assistant", "content": "x" * output}
                answer["prompt_token_ids"] = prompt_ids
            else:
                choice["text"] = "x" * output
                choice["prompt_token_ids"] = prompt_ids
            choices.append(choice)
            if self.layout == "two-arrays" and self.enabled:
                answer["prompt_routed_experts"] = npy(array[:prompt].astype(self.dtype))
        return {**answer, "choices": choices}

    def _wrapped(self, array: Ids, prompt: int, start: int) -> Any:
        typed = array.astype(self.dtype)
        if self.layout == "two-arrays":
            return npy(typed[prompt:])
        if self.layout == "dynamo":
            data = base64.b64encode(typed.tobytes()).decode()
            return {"data": data, "shape": typed.shape, "dtype": self.dtype, "start": start}
        return npy(typed)


@dataclass
class SglangServer:
    """Answers as `sglang.launch_server` does; a token is a byte of the prompt."""

    model: MoEModel = MODEL
    enabled: bool = True
    cached: int = 0
    silent: tuple[int, ...] = ()  # native layers whose kernel is not captured: zeros
    renamed: bool = False  # /model_info and /server_info, as newer releases have it
    change: Callable[[Request, Any], object] | None = None

    def __call__(self, request: Request, connection: socket.socket) -> None:
        prefix = "/" if self.renamed else "/get_"
        if request.path == f"{prefix}model_info":
            send(connection, {"model_path": "here/tiny", "is_generation": True})
        elif request.path == f"{prefix}server_info":
            facts = {"served_model_name": "tiny", "version": "0.5.23", "api_key": "s3cret"}
            send(connection, {**facts, "enable_return_routed_experts": self.enabled})
        elif request.path == "/generate":
            self._generate(request, connection)
        elif request.path == "/v1/chat/completions":
            self._chat(request, connection)
        else:
            send(connection, {"detail": "Not Found"}, "404 Not Found")

    def _encoded(self, text: str, output: int, start: int, choice: int = 0) -> str:
        ids = routing_of(text, len(text.encode()) + output - 1, choice, self.model)
        array = all_layers(ids, self.model)[start:].astype("<i4")
        array[:, list(self.silent)] = 0
        return base64.b64encode(array.tobytes()).decode()

    def _generate(self, request: Request, connection: socket.socket) -> None:
        body = request.json()
        text, sampling = body["text"], body["sampling_params"]
        output, n = sampling["max_new_tokens"], sampling.get("n", 1)
        answers = []
        for choice in range(n):
            meta = {
                "id": "1",
                "finish_reason": {"type": "length", "length": output},
                "prompt_tokens": len(text.encode()),
                "completion_tokens": output,
                "cached_tokens": self.cached,
            }
            if self.enabled and body.get("return_routed_experts"):
                start = body.get("routed_experts_start_len", 0)
                meta["routed_experts"] = self._encoded(text, output, start, choice)
            answers.append({"text": "x" * output, "output_ids": [1] * output, "meta_info": meta})
        self._send(request, connection, answers if n > 1 else answers[0])

    def _chat(self, request: Request, connection: socket.socket) -> None:
        body = request.json()
        text, output = "<user>" + body["messages"][0]["content"], body["max_tokens"]
        prompt = len(text.encode())
        answer: dict[str, Any] = {
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * output}}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": output},
        }
        if self.enabled and body.get("return_routed_experts"):
            start = body.get("routed_experts_start_len", 0)
            answer["sgl_ext"] = {"routed_experts": self._encoded(text, output, start)}
        self._send(request, connection, answer)

    def _send(self, request: Request, connection: socket.socket, answer: Any) -> None:
        if self.change is not None:
            self.change(request, answer)
        send(connection, json.dumps(answer))
