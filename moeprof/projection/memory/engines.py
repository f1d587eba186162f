"""What an engine keeps of a GPU beside weights and KV: activations, CUDA graphs, reserve."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.projection.memory.encoder import (
    ENCODER_SOURCE,
    encoder_output_bytes,
    encoder_peak_bytes,
)
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Provenance, Quantity
from moeprof.result import Result

_GIB = 2**30
# The formula with vLLM's context of 2 GiB gives what DeepSeek-R1 left on eight H200: 41.60 GiB for
# KV at a utilization of 0.9 (vLLM 0.11.2 log in https://github.com/ashishkamra/vllm-memory-estimator).
_ACTIVATIONS = "six hidden vectors a token and its experts' inputs and outputs, logits in FP32"
_MANY_RANKS, _LARGE_GRAPHS = 4, 300  # where SGLang's rule changes
_ENCODER_SPREAD = (0.75, 1.25)  # what a library copies or frees early
_ALIASES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "llama.cpp": "llamacpp"}


@dataclass(frozen=True)
class EngineMemory(Result):
    """Defaults of one engine on one card, in bytes; see engines.toml.

    `step_tokens` is the largest step that the engine runs and `requests` how many it runs at a
    time. `step_token_bytes` and `utilization` are None where the engine works them out.
    """

    name: str
    budget: str
    utilization: float | None
    step_tokens: int
    requests: int
    step_token_bytes: int | None
    graphs_bytes: int
    context_bytes: int
    rank_context_bytes: int
    margin_bytes: int
    least_reserve_bytes: int
    spread: tuple[float, float]  # of all that is assumed
    source: str

    def own_bytes(
        self, model: MoEModel, split: Parallelism, activations: Quantity | None
    ) -> dict[str, Quantity]:
        """Activations of the largest step, CUDA graphs, and the context with its communicators."""
        context = self.context_bytes + self.rank_context_bytes * split.ranks
        return {
            "activations": activations or self._steps(model, split),
            "graphs": self._assumed(self.graphs_bytes),
            "context": self._assumed(context),
        }

    def with_encoder(self, model: MoEModel, split: Parallelism, encoder_tp: int) -> Quantity:
        """Activations where the engine tries the longest video too, before the language model."""
        step = self._steps(model, split, encoder_output_bytes(model))
        peak = encoder_peak_bytes(model, encoder_tp)
        if not peak:
            return step
        most = max(peak * _ENCODER_SPREAD[1], step.high or step.value)
        least = max(peak * _ENCODER_SPREAD[0], step.low or step.value)
        source = f"{self.source}; {ENCODER_SOURCE}"
        value = max(peak, step.value)
        return Quantity(value, "bytes", Provenance.ASSUMED, least, most, source)

    def reserve(
        self,
        capacity: Quantity,
        held: float,
        own: Mapping[str, Quantity],
        utilization: float | None,
    ) -> Quantity:
        """What is left unused of the card, with `held` bytes of weights beside the `own` ones."""
        part = self.utilization if utilization is None else utilization
        taken = sum(size.value for size in own.values())
        if part is None:
            size = max(0, self.least_reserve_bytes - taken)
            source = self.source
        else:
            size = self._unused(capacity.value, held, taken, part) + self.margin_bytes
            source = f"1 - {_FLAGS[self.budget]} {part:g}; {self.source}"
        return Quantity(size, "bytes", Provenance.ASSUMED, size, size, source)  # a setting

    def _unused(self, card: float, held: float, taken: float, part: float) -> float:
        if self.budget == "free":
            return max(0.0, card - held - taken) * (1 - part)
        unused = card * (1 - part)
        return max(0.0, unused - taken) if self.budget == "static" else unused

    def _activations(self, model: MoEModel, split: Parallelism) -> float:
        """Of one step: hidden states, expert inputs and outputs, and the logits of a request each.

        Six vectors of the hidden size a token; for each of its top_k experts one of the hidden
        size and three of the rank's slice of an expert, in BF16; FP32 logits of all requests.
        """
        if self.step_token_bytes is not None:
            return self.step_token_bytes * self.step_tokens
        expert = model.hidden_size + 3 * model.expert_intermediate_size / split.moe_tp
        token = 2 * (6 * model.hidden_size + model.top_k * expert)
        return self.step_tokens * token + 4 * self.requests * model.vocab_size

    def _steps(self, model: MoEModel, split: Parallelism, beside: float = 0.0) -> Quantity:
        """Activations of the largest step, with what is kept `beside` them."""
        stated = self.step_token_bytes is not None
        rule = self.source if stated else f"{_ACTIVATIONS}; {self.source}"
        return self._assumed(self._activations(model, split) + beside, rule)

    def _assumed(self, size: float, source: str = "") -> Quantity:
        low, high = (size * factor for factor in self.spread)
        return Quantity(size, "bytes", Provenance.ASSUMED, low, high, source or self.source)


_FLAGS = {
    "card": "gpu_memory_utilization",
    "static": "mem_fraction_static",
    "free": "free_gpu_memory_fraction",
}


def engine_names() -> tuple[str, ...]:
    """Engines whose defaults are known."""
    return tuple(_known())


def engine_memory(
    name: str,
    capacity_bytes: float,
    split: Parallelism | None = None,
    *,
    step_tokens: int | None = None,
    drafts: bool = False,
) -> EngineMemory:
    """The defaults of the engine called `name` on a card, one of those that `split` names.

    `step_tokens` replaces its own, `drafts` is whether it speculates. Raises InputError naming all
    engines.
    """
    key = _ALIASES.get(name.lower(), name.lower())
    if key not in _known():
        raise InputError(f"no engine '{name}' is known for its memory: {', '.join(_known())}")
    entry, split = _known()[key], split or Parallelism()
    tokens, *requests = _from_card(entry["steps"], capacity_bytes)
    running = requests[-1 if split.stage_ranks >= _MANY_RANKS else 0]
    least = _from_card(entry["least_reserve"], capacity_bytes) if "least_reserve" in entry else [0]
    drafting = entry.get("draft_bytes", 0) if drafts else 0
    return EngineMemory(
        name=key,
        budget=entry["budget"],
        utilization=entry.get("utilization"),
        step_tokens=tokens if step_tokens is None else step_tokens,
        requests=running,
        step_token_bytes=entry.get("step_token_bytes"),
        graphs_bytes=_graphs_bytes(entry, running, split.dp) + drafting,
        context_bytes=entry.get("context_bytes", 0),
        rank_context_bytes=entry.get("rank_context_bytes", 0),
        margin_bytes=entry.get("margin_bytes", 0),
        least_reserve_bytes=least[0] + drafting if least[0] else 0,
        spread=(entry["spread"][0], entry["spread"][1]),
        source=entry["source"],
    )


def _graphs_bytes(entry: Mapping[str, Any], requests: int, dp: int) -> int:
    """CUDA graphs of up to `requests`; more where `dp` groups each run their own attention."""
    size: int = entry.get("request_graph_bytes", 0)
    if dp > 1:
        size += dp * entry.get("request_group_bytes", 0)
        size += dp * entry.get("large_group_bytes", 0) * (requests > _LARGE_GRAPHS)
    captured: int = min(requests, entry.get("graph_requests", requests))
    return size * captured


def _from_card(rows: Sequence[Sequence[int]], capacity_bytes: float) -> Sequence[int]:
    """The rest of the last row whose first entry, in GiB, the card reaches; else zeros."""
    reached = [row[1:] for row in rows if capacity_bytes >= row[0] * _GIB]
    return reached[-1] if reached else [0] * (len(rows[0]) - 1)


@cache
def _known() -> dict[str, dict[str, Any]]:
    text = files("moeprof.projection.memory").joinpath("engines.toml").read_text(encoding="utf-8")
    return {entry["name"]: entry for entry in tomllib.loads(text)["engine"]}
