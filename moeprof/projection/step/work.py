"""What a step must do, each part in seconds at the peak of the machine, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import NDArray

from moeprof.model import TENSOR_CLASSES
from moeprof.projection.deployment import Deployment
from moeprof.projection.memory.sequence_cache import SequenceCache
from moeprof.projection.routing import shape_of
from moeprof.projection.step.attending import attended_bytes, attention_flop
from moeprof.projection.step.batch import Batch
from moeprof.projection.step.groups import weights_format
from moeprof.projection.step.loads import EvenLoads, ExpertLoads
from moeprof.projection.step.rates import Peaks, peak_flops, peaks_of
from moeprof.projection.step.terms import TERM_NAMES

_DENSE_CLASSES = ("attention", "shared", "dense", "indexer")
_ACTIVATION_BYTES = 2  # BF16 between layers
_DISPATCH_BYTES = 3  # a value there in FP8 and back in BF16: DeepEP's formats
_LAYERS = 60  # what the constant of a token's overhead is counted in


@dataclass(frozen=True)
class Work:
    """The bytes and operations of a deployment that no batch changes; made by `work_of`."""

    deployment: Deployment
    peaks: Peaks
    cache: SequenceCache
    dense_bytes: float  # on a rank, read whole by every step
    head_bytes: float
    expert_bytes: float  # of one expert's slice on a rank, all MoE layers together
    dense_parameters: float  # on a rank
    expert_parameters: float  # one expert, all MoE layers together
    dense_flops: float  # peak FLOP/s in the format of each
    expert_flops: float

    def amounts(self, batch: Batch, loads: ExpertLoads | None = None) -> NDArray[np.float64]:
        """One amount a term (`TERM_NAMES`) of the step that computes `batch`; even routing where
        `loads` is None.
        """
        loads = loads or self.even
        amounts = self._decode(batch, loads) | self._prefill(batch, loads)
        return np.array([amounts.get(name, 0.0) for name in TERM_NAMES])

    @property
    def even(self) -> EvenLoads:
        """The reference."""
        return EvenLoads(shape_of(self.deployment.model), self.deployment.parallelism.ep)

    def _decode(self, batch: Batch, loads: ExpertLoads) -> dict[str, float]:
        model, parallel, peaks = self.deployment.model, self.deployment.parallelism, self.peaks
        tokens = batch.decode * (1 + batch.draft_tokens)
        in_all = tokens * parallel.dp
        moe_layers = len(model.moe_layers)
        read = loads.distinct(in_all, 1 + batch.draft_tokens)
        each = in_all * model.top_k / parallel.ep / read if read else 0
        expert = max(
            self.expert_bytes / peaks.memory,
            2 * each * self.expert_parameters / parallel.moe_tp / self.expert_flops,
        )
        dense = max(
            self.dense_bytes / peaks.memory, 2 * tokens * self.dense_parameters / self.dense_flops
        )
        context = attended_bytes(self.deployment, self.cache, batch.context)
        dispatched = moe_layers * (parallel.dp > 1)
        return {
            "step": 1e-3,
            "layer": model.layers * 1e-6,
            "moe_layer": moe_layers * 1e-6,
            "dense": dense,
            "head": self.head_bytes / peaks.memory,
            "experts": read * expert,
            "kv": batch.decode * context / peaks.memory,
            "sequence": tokens * 1e-6,
            "reduce_latency": self._reduces() * peaks.reduce_latency_s * log2(parallel.tp) / 3,
            "reduce": self._reduced(tokens),
            "dispatch_latency": dispatched * 1e-6,
            "dispatch": dispatched
            * tokens
            * model.top_k
            * model.hidden_size
            * _DISPATCH_BYTES
            / peaks.exchange,
            "expert_parallel": moe_layers * 1e-6 * (parallel.ep > 1),
        }

    def _prefill(self, batch: Batch, loads: ExpertLoads) -> dict[str, float]:
        model, parallel, tokens = self.deployment.model, self.deployment.parallelism, batch.prefill
        if not tokens:
            return {}
        decoding = batch.decode * (1 + batch.draft_tokens) * parallel.dp
        active = tokens * model.top_k * self.expert_parameters / parallel.stage_ranks
        drafted = 1 + batch.draft_tokens
        alone = loads.distinct(decoding, drafted)
        beyond = max(0.0, loads.distinct(decoding + tokens, drafted) - alone)
        attention = attention_flop(model, batch)
        return {
            "prefill_experts": 2 * active * loads.imbalance(tokens) / self.expert_flops,
            "prefill_read": beyond * self.expert_bytes / self.peaks.memory,
            "prefill_dense": 2 * tokens * self.dense_parameters / self.dense_flops,
            "prefill_attention": attention / parallel.tp / self.peaks.flops["bf16"],
            "prefill_reduce": self._reduced(tokens),
            "prefill_chunk": 1e-3,
            "prefill_token": tokens * 1e-6 * model.layers / _LAYERS,
        }

    def _reduces(self) -> int:
        """All-reduces of a step: behind attention and behind the feed-forward of every layer."""
        return 2 * self.deployment.model.layers

    def _reduced(self, tokens: float) -> float:
        if self.deployment.parallelism.tp == 1:
            return 0.0
        moved = tokens * self.deployment.model.hidden_size * _ACTIVATION_BYTES
        return self._reduces() * moved / self.peaks.reduce


def work_of(deployment: Deployment) -> Work:
    """The work of `deployment`. Raises InputError where the profile lacks bandwidth or FLOP/s."""
    model, precision = deployment.model, deployment.precision
    parallel, sizes = deployment.parallelism, _rank_bytes(deployment)
    counts = model.parameters
    experts = model.experts or 1
    layers = "attention" if model.experts else "dense"
    return Work(
        deployment=deployment,
        peaks=peaks_of(deployment.cluster, parallel.stage_ranks),
        cache=SequenceCache(model, parallel.tp, deployment.kv_dtype, deployment.index_dtype),
        dense_bytes=sum(sizes[name] for name in _DENSE_CLASSES),
        head_bytes=sizes["embedding" if model.tied_embeddings else "head"],
        expert_bytes=sizes["routed"] * parallel.ep / experts,
        dense_parameters=sum(counts[name] for name in _DENSE_CLASSES) / parallel.tp,
        expert_parameters=counts["routed"] / experts,
        dense_flops=peak_flops(deployment.cluster.profile, precision.formats[layers]),
        expert_flops=peak_flops(deployment.cluster.profile, weights_format(deployment).name),
    )


def _rank_bytes(deployment: Deployment) -> dict[str, int]:
    """Bytes of each class of tensors on a rank, all stages together."""
    sizes = dict.fromkeys(TENSOR_CLASSES, 0)
    for group in deployment.model.counted_tensors():
        whole = deployment.precision.group_bytes(group)
        on_rank = deployment.parallelism.rank_bytes(deployment.model, group, whole)
        sizes[group.tensor_class] += on_rank
    return sizes
