"""How prompts are put to a server, and what an engine must say to be recorded this way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moeprof.capture.http import HttpClient
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.formats.routed import Routed


@dataclass(frozen=True)
class Asking:
    """What every request asks for. Raises InputError on values that cannot be."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    choices: int = 1  # sequences a prompt
    chat: bool = False  # as a message of a user, through the model's chat template
    prompt_start: int = 0  # leading prompt tokens whose routing the server leaves out
    token_ids: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "choices"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}, it must be 0 or more")
        if self.prompt_start < 0:
            raise InputError(f"prompt_start is {self.prompt_start}, it must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}, it must lie between 0 and 2^63")

    def seed_of(self, number: int) -> int:
        """The seed of prompt `number`: another for each, or alike prompts would go alike."""
        return (self.seed + number) % 2**63


@dataclass(frozen=True)
class Served:
    """What a server says of itself."""

    name: str  # as requests name the model
    path: str  # its weights, as the server sees them: a hub id or a folder
    engine_version: str = ""


def server_address(url: str) -> str:
    """`url` as engines' own paths stand behind it: what OpenAI clients are given ends in /v1."""
    return url.rstrip("/").removesuffix("/v1")


class Engine(Protocol):
    """One engine's routing API."""

    name: str
    no_routing: str  # why an answer may hold none, and what to start the server with
    silent_layer: str  # why all ids of a MoE layer may be 0, and what to change

    def check(self, asking: Asking) -> None:
        """Raises InputError where the engine cannot answer so."""

    def describe(self, client: HttpClient, served_model: str | None) -> Served:
        """What the server runs. Raises HttpError, or InputError if that is not clear."""

    def request(
        self, served: Served, asking: Asking, text: str, number: int
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of the request for prompt `number`."""

    def sequences(self, document: Any, asking: Asking, model: MoEModel) -> Sequence[Routed | None]:
        """The routing in an answer, one a sequence. Raises what `reading.MALFORMED` lists."""
