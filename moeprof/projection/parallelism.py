"""How a deployment splits a model over ranks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moeprof.errors import InputError
from moeprof.model import MoEModel, TensorGroup
from moeprof.result import Result

# What every rank of a tensor-parallel group holds whole in vLLM: its ReplicatedLinear for the gate
# and the index projections, plain parameters for norms (vllm/model_executor/models: deepseek_v2.py,
# qwen3_next.py, gpt_oss.py at https://github.com/vllm-project/vllm).
_REPLICATED_CLASSES = ("router", "indexer", "norms")
_REPLICATED_TENSORS = {
    # DeepSeekV2FusedQkvAProjLinear is made with disable_tp: its outputs belong to all heads.
    "attention": {"q_a_proj", "q_a_proj_bias", "q_a_norm", "kv_a_proj", "kv_a_proj_bias"}
    | {"kv_a_norm", "q_norm", "k_norm", "linear_norm"}
    # RowParallelLinear adds its bias after the sum over ranks.
    | {"o_bias", "o_proj_bias"},
    "shared": {"expert_gate"},
    "dense": {"down_bias"},
    "routed": {"down_bias"},
}
_KV_TENSORS = ("k_proj", "v_proj", "k_bias", "v_bias")


@dataclass(frozen=True)
class Parallelism(Result):
    """`pp` stages of layers, each of `dp` groups of `tp` ranks; routed experts over all ranks of a
    stage, `ep` ways by whole experts.

    As vLLM and TensorRT-LLM count it: attention data parallel over `dp`, and the MoE layers
    parallel over all tp x dp ranks of their stage, of which `ep` ways go by whole experts and the
    remaining `moe_tp` = tp x dp / ep ways slice every expert.
    """

    tp: int = 1
    ep: int = 1
    dp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "ep", "dp", "pp"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.stage_ranks % self.ep:
            raise InputError(
                f"ep {self.ep} does not divide the {self.stage_ranks} ranks of tp x dp"
            )

    @property
    def stage_ranks(self) -> int:
        """Ranks that hold one stage together."""
        return self.tp * self.dp

    @property
    def ranks(self) -> int:
        """Ranks of the deployment, one GPU each."""
        return self.stage_ranks * self.pp

    @property
    def moe_tp(self) -> int:
        """Ways that one routed expert is sliced."""
        return self.stage_ranks // self.ep

    def check_fits_shape(self, model: MoEModel, gpus: int, pad_heads: bool = False) -> None:
        """Raises InputError where the ranks outnumber the GPUs or cannot split layers or heads.

        With `pad_heads` heads that `tp` does not divide are padded with empty ones.
        """
        if self.ranks > gpus:
            stages = f" x pp {self.pp}" if self.pp > 1 else ""
            split = f"tp {self.tp} x dp {self.dp}{stages}"
            raise InputError(f"{split} needs {self.ranks} GPUs, not {gpus}")
        if self.pp > model.layers:
            raise InputError(f"pp {self.pp} is more than the {model.layers} layers of {model.name}")
        heads = model.attention.heads if model.attention else self.tp
        if heads % self.tp and not pad_heads:
            raise InputError(
                f"tp {self.tp} does not divide the {heads} heads of {model.name}; "
                "some engines pad them: --pad-heads"
            )
        linear = model.linear
        if linear is not None and linear.key_heads % self.tp:
            raise InputError(
                f"tp {self.tp} does not divide the {linear.key_heads} key heads of "
                f"{model.name}'s linear attention"
            )
        if self.ep > max(model.experts, 1):
            raise InputError(f"ep {self.ep} is more than the {model.experts} experts")

    def rank_bytes(self, model: MoEModel, group: TensorGroup, group_bytes: int) -> int:
        """Bytes of `group` on the rank that holds most of it, `group_bytes` being the whole.

        Routed experts: ceil(experts / ep) whole experts, each sliced `moe_tp` ways. Attention by
        whole heads; projections of keys and values at most one slice a KV head, replicated beyond.
        Router, indexer, norms,
        latent attention's projections down to its short vectors, the gate of a shared expert and
        biases behind a sum over ranks: whole on every rank. All else: sliced `tp` ways.
        (https://docs.vllm.ai/en/latest/serving/expert_parallel_deployment/)
        """
        whole = group.name in _REPLICATED_TENSORS.get(group.tensor_class, ())
        if group.tensor_class == "routed":
            return self.expert_bytes(model, group, group_bytes, ceil(model.experts / self.ep))
        if whole or group.tensor_class in _REPLICATED_CLASSES:
            return group_bytes
        if group.tensor_class == "attention" and model.attention:
            kv, heads = group.name in _KV_TENSORS, model.attention.heads
            heads = model.attention.kv_heads if kv else heads
            return ceil(group_bytes * ceil(heads / self.tp) / heads)
        return ceil(group_bytes / self.tp)

    def expert_bytes(
        self, model: MoEModel, group: TensorGroup, group_bytes: int, slots: int
    ) -> int:
        """Bytes of `slots` experts a layer on a rank, `group_bytes` being all of a routed group."""
        whole = group.name in _REPLICATED_TENSORS["routed"]
        return ceil(group_bytes * slots / (model.experts * (1 if whole else self.moe_tp)))
