"""The classes of one pipeline stage's fullest rank, and what fits beside them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from moeprof.model import MoEModel, Precision
from moeprof.projection.memory.drafts import Draft
from moeprof.projection.memory.engines import EngineMemory
from moeprof.projection.memory.experts import ExpertSlots, slot_bytes
from moeprof.projection.memory.sequence_cache import (
    STATE_SOURCE,
    SequenceCache,
    prediction_kv_bytes,
)
from moeprof.projection.memory.weights import (
    LOADED_CLASSES,
    engine_bytes,
    rank_weights,
    split_loaded,
)
from moeprof.projection.parallelism import Parallelism
from moeprof.quantity import Provenance, Quantity, total

_POSITIONS = 2**24  # where a configuration does not say how many there are


@dataclass(frozen=True)
class StageLedger:
    """One rank of a stage, of which `sequences` hold `length` tokens each."""

    model: MoEModel
    precision: Precision
    split: Parallelism
    slots: ExpertSlots
    cache: SequenceCache
    sequences: int
    length: int
    classes: Mapping[str, Quantity] = field(hash=False)
    left_out: Mapping[str, Quantity] = field(hash=False)
    capacity: float

    @property
    def total(self) -> Quantity:
        """All classes together."""
        return total(self.classes.values())

    @property
    def weights(self) -> Quantity:
        """The classes of the checkpoint."""
        return total(self.classes[name] for name in LOADED_CLASSES)

    @property
    def free(self) -> float:
        """Bytes that nothing takes; negative where it does not fit."""
        return self.capacity - self.total.value

    @property
    def max_kv_tokens(self) -> int | None:
        """Tokens of KV in whole blocks; None where the stage keeps none."""
        if not self.cache.block_bytes:
            return None
        room = self.free + self.classes["kv"].value
        return _times(room, self.cache.block_bytes) * self.cache.block_tokens

    @property
    def max_sequences(self) -> int | None:
        """Sequences of `length` tokens; None where the stage keeps nothing of them."""
        each = self.cache.kv_bytes(self.length) + self.cache.state_bytes
        return _times(self.free + self.sequences * each, each) if each else None

    def max_context(self, positions: int) -> int:
        """Tokens of each of the `sequences`, up to `positions`."""
        room = (self.free + self.classes["kv"].value) / self.sequences
        most, block = positions or _POSITIONS, self.cache.block_tokens
        blocks = range(ceil(most / block) + 1)
        fitting = bisect_right(blocks, room, key=lambda n: self.cache.kv_bytes(n * block))
        return min(most, max(0, fitting - 1) * block)

    @property
    def max_cache_slots(self) -> int | None:
        """Experts of each layer that fit, over all ranks of the stage; None where none routes."""
        if not self.model.moe_layers:
            return None
        each = slot_bytes(self.model, self.precision, self.split, 1)
        room = self.free + self.classes["routed"].value
        return min(self.model.experts, _times(room, each) * self.split.ep)


@dataclass(frozen=True)
class StagePlan:
    """What all stages of a deployment share, from which each gets its ledger."""

    precision: Precision
    split: Parallelism
    slots: ExpertSlots
    draft: Draft | None
    engine: EngineMemory
    capacity: Quantity
    utilization: float | None
    activation_bytes: int | None
    encoder_profile: bool
    kv_dtype: str
    index_dtype: str
    extra_kv_bytes: int  # a token and rank of the last stage
    absent: tuple[str, ...]  # classes that are not loaded
    whole: tuple[str, ...]  # classes that every rank holds

    def ledger(self, model: MoEModel, last: bool, sequences: int, length: int) -> StageLedger:
        """The ledger of the stage that `model` describes."""
        draft = self.draft if last else None
        # A checkpoint without its indexer runs dense attention, which keeps no index keys.
        indexed = "indexer" not in self.precision.absent
        cache = SequenceCache(
            model if indexed else replace(model, indexer=None),
            self.split.tp,
            self.kv_dtype,
            self.index_dtype,
            self._draft_kv(model, last),
        )
        loaded, left_out = split_loaded(
            rank_weights(model, self.precision, self.split, self.slots, self.whole), self.absent
        )
        classes = dict(loaded)
        classes["draft"] = (
            draft.weight_bytes(self.split.tp) if draft else _specified(0, "no draft is loaded")
        )
        classes["engine"] = engine_bytes(model, self.precision, self.split, self.slots)
        held = sum(size.value for size in classes.values())
        classes["kv"] = _specified(sequences * cache.kv_bytes(length), cache.source)
        classes["state"] = _specified(sequences * cache.state_bytes, STATE_SOURCE)
        own = self.engine.own_bytes(model, self.split, self._activations(model))
        reserve = self.engine.reserve(self.capacity, held, own, self.utilization)
        classes |= {**own, "reserve": reserve}
        return StageLedger(
            model, self.precision, self.split, self.slots, cache, sequences, length,
            classes, left_out, self.capacity.value,
        )  # fmt: skip

    def _activations(self, model: MoEModel) -> Quantity | None:
        """As the caller states them, or with the longest video; None is the engine's default."""
        if self.activation_bytes is not None:
            return _specified(self.activation_bytes, "given by the caller")
        if not self.encoder_profile or "vision" in self.absent:
            return None
        return self.engine.with_encoder(model, self.split, 1 if self.whole else self.split.tp)

    def _draft_kv(self, model: MoEModel, last: bool) -> int:
        """Bytes of a token that speculation adds to the last stage."""
        if not last:
            return 0
        added = self.extra_kv_bytes
        if self.draft is not None:
            added += self.draft.kv_bytes_per_token(self.split.tp, self.kv_dtype)
        if "prediction" not in self.absent:
            added += prediction_kv_bytes(model, self.split.tp, self.kv_dtype, self.index_dtype)
        return added


def _times(room: float, size: int) -> int:
    """How often `size` fits into `room`, which may be negative."""
    return max(0, int(room // size))


def _specified(size: float, source: str) -> Quantity:
    return Quantity(size, "bytes", Provenance.SPECIFIED, source=source)
