"""SGLang's own routing API: `--enable-return-routed-experts`, and a flag on every request.

Arrays are int32 without a shape (sglang 0.5.23, srt/state_capturer/base.py), so the model must be
known before an answer can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.capture.http import HttpClient, HttpError
from moeprof.capture.server.asking import Asking, Served
from moeprof.capture.server.vllm import user_message
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.formats.routed import Routed, sglang_sequences


class Sglang:
    """An SGLang server."""

    name = "sglang"
    no_routing = (
        "the answer has no routed_experts: start the server with --enable-return-routed-experts"
    )
    silent_layer = (
        "its MoE kernel chooses experts where SGLang cannot capture them: start the server with "
        "another --moe-runner-backend (triton), see docs/servers.md"
    )

    def check(self, asking: Asking) -> None:
        """InputError on what SGLang does not return."""
        if asking.token_ids:
            raise InputError("SGLang returns no token ids of prompts: leave token_ids out")
        if asking.chat and asking.choices > 1:
            raise InputError(
                "SGLang returns the routing of one choice of a chat: leave chat out, or ask for one"
            )

    def describe(self, client: HttpClient, served_model: str | None) -> Served:
        """From `/get_model_info` (`/model_info` in newer releases) and the server's arguments."""
        info = either(client, "/get_model_info", "/model_info")
        path = info.get("model_path") if isinstance(info, dict) else None
        if not isinstance(path, str):
            raise HttpError(client.url, "names no model_path", "is this an SGLang server?")
        arguments = server_arguments(client)
        name = served_model or arguments.get("served_model_name")
        version = arguments.get("version")
        return Served(
            name if isinstance(name, str) else path,
            path,
            version[:64] if isinstance(version, str) else "",
        )

    def request(
        self, served: Served, asking: Asking, text: str, number: int
    ) -> tuple[str, dict[str, Any]]:
        """`/generate`, or with `chat` the OpenAI endpoint."""
        body: dict[str, Any] = {"return_routed_experts": True, "stream": False}
        if asking.prompt_start:
            body["routed_experts_start_len"] = asking.prompt_start
        if asking.chat:
            chat = {"model": served.name, "messages": [user_message(text)]}
            limits = {"max_tokens": asking.max_new_tokens, "temperature": asking.temperature}
            seed = {"seed": asking.seed_of(number)} if asking.temperature else {}
            return "/v1/chat/completions", {**chat, **limits, **seed, **body}
        sampling: dict[str, Any] = {
            "max_new_tokens": asking.max_new_tokens,
            "temperature": asking.temperature,
        }
        if asking.temperature:
            sampling["sampling_seed"] = asking.seed_of(number)
        if asking.choices > 1:
            sampling["n"] = asking.choices
        return "/generate", {"text": text, "sampling_params": sampling, **body}

    def sequences(self, document: Any, asking: Asking, model: MoEModel) -> Sequence[Routed | None]:
        """One a sequence."""
        return list(sglang_sequences(document, model.layers, model.top_k, asking.prompt_start))


def either(client: HttpClient, path: str, other: str) -> Any:
    """The document at `path`, or where there is none the one at `other`: endpoints were renamed."""
    try:
        return client.get(path)
    except HttpError as error:
        if error.status != 404:
            raise
        return client.get(other)


def server_arguments(client: HttpClient) -> dict[str, Any]:
    """What the server was started with, {} where it does not say. Holds keys: never shown."""
    try:
        answer = either(client, "/get_server_info", "/server_info")
    except HttpError:
        return {}
    return answer if isinstance(answer, dict) else {}
