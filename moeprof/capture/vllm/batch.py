"""What vLLM's model runners say of the step they have just run, first and second version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """R requests of a step of T tokens, in the order of its rows.

    Positions come from the device: with asynchronous scheduling and speculative decoding the
    host knows only what they are at most.
    """

    ids: list[str]  # [R] the engine's
    tokens: NDArray[np.int32]  # [R] rows of each, one request after the other
    positions: torch.Tensor  # [T]
    token_ids: torch.Tensor | None  # [T]

    @property
    def total(self) -> int:
        """T"""
        return int(self.tokens.sum())


def read_batch(runner: Any, scheduled: Any) -> Batch:
    """The step that `runner` has run for the scheduler output `scheduled`."""
    if hasattr(runner, "req_states"):
        return _second(runner.execute_model_state.input_batch)
    return _first(runner, scheduled)


def _first(runner: Any, scheduled: Any) -> Batch:
    ids = list(runner.input_batch.req_ids[: runner.input_batch.num_reqs])
    each = scheduled.num_scheduled_tokens
    tokens = np.array([each[name] for name in ids], np.int32)
    total = int(tokens.sum())
    positions, token_ids = (_on_device(b)[:total] for b in (runner.positions, runner.input_ids))
    return Batch(ids, tokens, positions, token_ids)


def _second(batch: Any) -> Batch:
    tokens = np.array(batch.num_scheduled_tokens[: batch.num_reqs], np.int32)
    total = int(tokens.sum())
    return Batch(list(batch.req_ids), tokens, batch.positions[:total], batch.input_ids[:total])


def _on_device(buffer: Any) -> torch.Tensor:
    """The device's side of a pair of buffers, or the tensor itself."""
    tensor: torch.Tensor = getattr(buffer, "gpu", buffer)
    return tensor


def prompt_length(runner: Any, name: str) -> int:
    """Tokens of the prompt of a request that the runner knows."""
    if hasattr(runner, "req_states"):
        states = runner.req_states
        return int(states.prompt_len.np[states.req_id_to_index[name]])
    return int(runner.requests[name].num_prompt_tokens)
