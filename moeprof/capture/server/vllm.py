"""vLLM's own routing API: `vllm serve --enable-return-routed-experts`.

Every answer that is not streamed then carries an .npy for each choice (vllm 0.32.0,
entrypoints/openai/chat_completion/protocol.py and completion/protocol.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.capture.http import HttpClient, HttpError
from moeprof.capture.server.asking import Asking, Served
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.formats.routed import Routed, vllm_sequences


class Vllm:
    """A vLLM server from 0.21 on."""

    name = "vllm"
    no_routing = (
        "the answer has no routed_experts: start the server with --enable-return-routed-experts"
    )
    silent_layer = "did that layer's kernel run past vLLM's capture? see docs/servers.md"

    def check(self, asking: Asking) -> None:
        """Everything can be asked of vLLM."""

    def describe(self, client: HttpClient, served_model: str | None) -> Served:
        """From `/v1/models`: the base model, or the one that was named."""
        cards = client.get("/v1/models")
        known = _cards(cards)
        if served_model is None:
            chosen = next((card for card in known if not card.get("parent")), None)
        else:
            chosen = next((card for card in known if card["id"] == served_model), None)
        if chosen is None:
            names = ", ".join(card["id"] for card in known) or "none"
            raise InputError(f"{client.url} serves no model {served_model or ''}; it has: {names}")
        root = chosen.get("root")
        return Served(
            chosen["id"], root if isinstance(root, str) else chosen["id"], _version(client)
        )

    def request(
        self, served: Served, asking: Asking, text: str, number: int
    ) -> tuple[str, dict[str, Any]]:
        """A completion, or with `chat` a chat of one message."""
        body: dict[str, Any] = {
            "model": served.name,
            "max_tokens": asking.max_new_tokens,
            "temperature": asking.temperature,
            "stream": False,  # a streamed answer carries no routing
        }
        if asking.temperature:
            body["seed"] = asking.seed_of(number)
        if asking.choices > 1:
            body["n"] = asking.choices
        if asking.prompt_start:
            body["routed_experts_prompt_start"] = asking.prompt_start
        if asking.token_ids:
            body["return_token_ids"] = True
        if asking.chat:
            return "/v1/chat/completions", {"messages": [user_message(text)], **body}
        return "/v1/completions", {"prompt": text, **body}

    def sequences(self, document: Any, asking: Asking, model: MoEModel) -> Sequence[Routed | None]:
        """One a choice."""
        # Where nothing was left out, rows can be missing only at the end, and start at 0.
        return list(vllm_sequences(document, asking.prompt_start))


def user_message(text: str) -> dict[str, str]:
    """A prompt as engines take it in a chat."""
    return {"role": "user", "content": text}


def _cards(document: Any) -> list[dict[str, Any]]:
    cards = document.get("data") if isinstance(document, dict) else None
    if not isinstance(cards, list):
        return []
    return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _version(client: HttpClient) -> str:
    """What `/version` says, '' where a proxy does not pass it on."""
    try:
        answer = client.get("/version")
    except HttpError:
        return ""
    version = answer.get("version") if isinstance(answer, dict) else None
    return version[:64] if isinstance(version, str) else ""
