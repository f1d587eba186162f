"""What a replay assumes about the engine, by name. A result without its contract says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moeprof.errors import InputError
from moeprof.result import Result


@dataclass(frozen=True)
class Contract(Result):
    """How events are looked up, served and counted."""

    name: str
    words: str  # the rules in a sentence
    larger_event: str  # what becomes of one that exceeds the capacity
    serving: str = "at_once"  # the way of `policies.serving`
    sequential: bool = False  # members are looked up and served one at a time
    order: str = "first use"  # in which members are looked up: first use, last use, id
    inserts: int | None = None  # misses of an event that come in at most, the last of them
    scope: str = ""  # the scope that the engine has, where it has but one
    policies: tuple[str, ...] = ()  # those that it can have, its default first; none: any
    own: tuple[tuple[str, str], ...] = ()  # of these, the engine's own version: a module's name
    source: str = ""

    @property
    def default_policy(self) -> str:
        """What the engine does unless told otherwise."""
        return self.policies[0] if self.policies else "lru"


ATOMIC = Contract(
    "atomic",
    "all distinct experts of a step in a layer are looked up against the state before, then all "
    "misses are served; none of them makes room for another",
    "in order of first use; once only members are left, the policy's own victim among them goes",
)
SEQUENTIAL = Contract(
    "sequential",
    "one expert at a time is looked up and served, as general cache simulators do; for comparison "
    "with them only",
    "each in turn: what came first makes room for what comes last",
    sequential=True,
)
BIG_MOE_ON_EDGE = Contract(
    "bigmoeonedge",
    "one pool; all distinct experts of a batch are looked up and come in, in order of last use; "
    "then others go until the budget holds. A prompt is one batch a layer",
    "all its members stay until the next batch makes room",
    serving="evict_after",
    order="last use",
    scope="global",
    policies=("lru", "lfu-perfect", "random"),
    source="github.com/Helldez/BigMoeOnEdge: scripts/route-replay.py and load_layer in "
    "core/src/moe/expert_stream_source.cpp",
)
LLAMA_CPP = Contract(
    "llamacpp",
    "every layer has its slots; a step looks up every expert of every token, and steps of more "
    "than 4 tokens pass by the cache, uncounted. Between two steps the last 2 misses are sent for, "
    "the least recently used go at once, and what was sent for is there one step later (an upload "
    "is taken to last less than a step)",
    "misses wait; at most 2 a step come in, as many as there are slots",
    serving="deferred",
    inserts=2,
    scope="layer",
    policies=("lru",),
    source="github.com/ggml-org/llama.cpp pull request 27861: src/llama-moecache.cpp, "
    "--moe-expert-cache and --moe-expert-cache-inserts",
)
VLLM = Contract(
    "vllm",
    "every layer has its slots; the distinct experts of a batch are looked up in order of id, and "
    "none of them makes room for another",
    "it is served in runs of whole tokens that fit, and an expert counts in every run that wants "
    "it; fewer slots than a token has experts are refused",
    serving="in_parts",
    order="id",
    scope="layer",
    policies=("lfru", "lru"),
    own=(("lfru", "lfru_in_cache"),),
    source="github.com/vllm-project/vllm pull request 37190: "
    "vllm/model_executor/layers/fused_moe/expert_weight_provider.py, --moe-expert-cache-size, in "
    "the version that protects the experts of a call and splits by token",
)
FREE_TOKEN = Contract(
    "freetoken",
    "one pool of slots; the distinct experts of a decode step in a layer are looked up together "
    "and misses come in by id; of slots equally old the lowest goes. Steps with prompt tokens "
    "stream whole layers, are not counted, and leave the first 2 x experts slots empty",
    "what finds no slot passes through; the engine stops",
    order="id",
    scope="global",
    policies=("lru",),
    own=(("lru", "slot_lru"),),
    source="github.com/FlashML-org/FreeToken at 0ab982f: python/freetoken/moe/offload_cache.py, "
    "decode_target gpu, --moe-cache-size, and lru_ensure of github.com/FlashML-org/flashlib",
)
K_TRANSFORMERS = Contract(
    "ktransformers",
    "a mask says which experts are on the GPU; the others are computed on the CPU and nothing "
    "moves. `uniform` takes the first experts of every layer, `front-loading` whole layers from "
    "the first, `random` any (seed 42), `frequency` those that most tokens chose in the window "
    "before. Slots count over all layers",
    "what the mask does not name is computed on the CPU",
    scope="global",
    policies=("uniform", "frequency", "front-loading", "random"),
    own=(
        ("uniform", "static"),
        ("frequency", "static"),
        ("front-loading", "static"),
        ("random", "static"),
    ),
    source="github.com/kvcache-ai/ktransformers: kt-kernel/python/experts_base.py, "
    "doc/en/kt-kernel/experts-sched-Tutorial.md, and kvcache-ai/sglang: "
    "python/sglang/srt/layers/moe/kt_ep_wrapper.py, --kt-expert-placement-strategy",
)
MOE_INFINITY = Contract(
    "moe-infinity",
    "one pool; the experts of a batch in a layer are dispatched in order of id, and none of them "
    "makes room for another. A miss that finds no room makes the one with fewest visits in this "
    "request go. Hits take of the free space too, so that the pool stops growing early. Without "
    "prefetch",
    "what finds no room passes through; the engine stops",
    serving="dispatched",
    order="id",
    scope="global",
    policies=("lfu",),
    own=(("lfu", "visits"),),
    source="github.com/EfficientMoE/MoE-Infinity at d617801: core/parallel/expert_dispatcher.cpp",
)
CONTRACTS = {
    contract.name: contract
    for contract in (
        ATOMIC,
        SEQUENTIAL,
        BIG_MOE_ON_EDGE,
        LLAMA_CPP,
        VLLM,
        FREE_TOKEN,
        K_TRANSFORMERS,
        MOE_INFINITY,
    )
}


def find_contract(name: str | Contract) -> Contract:
    """The contract of that name. Raises InputError for an unknown one."""
    if isinstance(name, Contract):
        return name
    if name not in CONTRACTS:
        raise InputError(f"contract '{name}' is not one of {', '.join(CONTRACTS)}")
    return CONTRACTS[name]


def refuse_mixed(contracts: Iterable[str], allowed: bool) -> None:
    """Raise InputError where results of several contracts would be compared unasked."""
    names = sorted(set(contracts))
    if len(names) > 1 and not allowed:
        raise InputError(
            f"results under different contracts ({', '.join(names)}) do not compare: "
            "give one contract, or --across-contracts to see them side by side all the same"
        )
