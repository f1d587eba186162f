"""Memory of one rank, class by class: does a deployment fit, and how many tokens of KV are left.

Infeasible is an answer here (`fits` is False), never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.projection.memory.weights import LOADED_CLASSES
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Quantity, total
from moeprof.result import Result


@dataclass(frozen=True)
class StageMemory(Result):
    """A pipeline stage: its layers, and bytes on its fullest rank. Weights are those loaded."""

    first_layer: int
    layers: int
    weights_bytes: float
    kv_bytes: float
    total_bytes: float


@dataclass(frozen=True)
class MemoryLedger(Result):
    """Bytes on the fullest rank of a deployment, which stands on pipeline stage `stage`.

    `classes` maps the tensor classes to bytes, then `prediction` (modules for multi-token
    prediction, where they are loaded), `redundant` (second copies of experts), `draft` (weights of
    a draft model), `engine` (what an engine holds beside for its kernels' sake), `kv`, `state`
    (linear attention, a state a running sequence), and what the engine keeps for itself:
    `activations`, `graphs` (CUDA graphs), `context` (of the driver, with communicators) and
    `reserve`; `total` is their sum. `left_out` holds what the checkpoint has and this deployment
    does not load, `host` the experts that one node keeps in its host memory of `host_capacity`,
    which is None where nobody named it. `kv_copies` is on how many tensor-parallel ranks the same
    keys and values stand.

    `free_bytes` is capacity less total and negative where it does not fit; `fits` holds for every
    stage and for a host that is known. `max_kv_tokens` is how many tokens of KV one data-parallel
    group could hold beside all else, in whole blocks of `block_tokens`, every layer keeping every
    token: with `sliding_layers` it is a lower bound. `max_sequences` is how many sequences of the
    length asked for it could hold, with their states and the windows as they are; None where no
    length was asked for. `max_context` is how long each of the `sequences` could be, up to the
    positions of the model. `max_cache_slots` is how many experts of each layer would fit on GPUs
    beside all else, up to all of them; None for a dense model.
    """

    model: str
    hardware: str
    precision: str
    engine: str
    draft: str | None
    parallelism: Parallelism
    redundant: int
    cache_slots: int | None
    tokens: int
    sequences: int
    block_tokens: int
    sliding_layers: int
    kv_bytes_per_token: int
    kv_copies: int
    state_bytes_per_sequence: int
    classes: Mapping[str, Quantity] = field(hash=False)
    left_out: Mapping[str, Quantity] = field(hash=False)
    stage: int
    stages: tuple[StageMemory, ...]
    total: Quantity
    capacity: Quantity
    host: Quantity
    host_capacity: Quantity | None
    fits: bool
    free_bytes: float
    max_kv_tokens: int
    max_sequences: int | None
    max_context: int
    max_cache_slots: int | None

    @property
    def weights(self) -> Quantity:
        """Bytes of all loaded tensors on the rank, as the checkpoint stores them."""
        return total(self.classes[name] for name in LOADED_CLASSES)
