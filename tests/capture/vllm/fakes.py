"""Stand-ins for what the plugin touches of vLLM: a runner, its batches, routers, a worker.

They hold what the released classes hold under the same names, and route at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moeprof.capture.vllm.buffer import StepBuffer
from moeprof.capture.vllm.rank_recording import Subject
from moeprof.capture.vllm.ranks import Rank
from moeprof.capture.vllm.routers import Site, tap_routers
from moeprof.model import MoEModel

LAYERS, EXPERTS, TOP_K = (1, 2, 3), 8, 2
CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "mlp_only_layers": [0],
    "decoder_sparse_step": 1,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}


class FakeRouter:
    """As vllm's BaseRouter: one capture function."""

    def __init__(self) -> None:
        self.capture_fn: Any = None

    def set_capture_fn(self, capture: Any) -> None:
        """As vLLM has it."""
        self.capture_fn = capture


def make_subject(rank: Rank | None = None, *, speculative: bool = False) -> Subject:
    """The model of `CONFIG` in vLLM."""
    model = MoEModel.from_config(CONFIG, name="tiny")
    return Subject(rank or Rank(), model, list(LAYERS), "0.32.0", speculative)


@dataclass
class Asked:
    """One request as a client sends it."""

    name: str
    prompt: int
    computed: int = 0


@dataclass
class FakeEngine:
    """A scheduler and a runner in one, of the first or the second version.

    `truth` holds what was routed: by (request, position), of every time it was computed.
    """

    second: bool = False
    padding: int = 0
    seed: int = 0
    truth: list[tuple[int, str, int, NDArray[Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.routers = [FakeRouter() for _ in LAYERS]
        self.buffer = StepBuffer(torch.device("cpu"), 512, len(LAYERS), TOP_K)
        self.tap()
        self.requests: dict[str, Asked] = {}
        self.forwards = 0
        if self.second:
            self.req_states = SimpleNamespace(
                prompt_len=SimpleNamespace(np=np.zeros(64, np.int32)), req_id_to_index={}
            )
        else:
            self.positions = torch.zeros(1024, dtype=torch.int64)
            self.input_ids = SimpleNamespace(gpu=torch.zeros(1024, dtype=torch.int32))

    def tap(self) -> Callable[[], None]:
        """Put our taps on the routers there are."""
        sites = {n: Site(n, router) for n, router in zip(LAYERS, self.routers, strict=True)}
        return tap_routers(sites, self.buffer, None)

    def scheduled(self, work: dict[str, int], new: list[Asked], finished: list[str]) -> Any:
        """A scheduler output: rows by request, arrivals, ends."""
        self.requests |= {asked.name: asked for asked in new}
        return SimpleNamespace(
            total_num_scheduled_tokens=sum(work.values()),
            num_scheduled_tokens=work,
            scheduled_new_reqs=[SimpleNamespace(req_id=asked.name) for asked in new],
            finished_req_ids=set(finished),
        )

    def execute_model(self, scheduled: Any, dummy_run: bool = False) -> None:
        """Route every scheduled row in every layer, padding behind them."""
        self.forwards += 1
        work = scheduled.num_scheduled_tokens
        names = list(work)
        if dummy_run:
            self._route(sum(work.values()))
            return
        positions = np.concatenate(
            [self.requests[n].computed + np.arange(work[n]) for n in names] or [np.zeros(0)]
        ).astype(np.int64)
        experts = self._route(len(positions) + self.padding)
        row = 0
        for name in names:
            for position in positions[row : row + work[name]]:
                self.truth.append((self.forwards - 1, name, int(position), experts[row]))
                row += 1
            self.requests[name].computed += work[name]
        self._tell(names, work, positions)

    def _route(self, rows: int) -> NDArray[Any]:
        shape = (rows, len(LAYERS), EXPERTS)
        experts = np.argsort(self.random.random(shape), axis=-1)[..., :TOP_K].astype(np.int32)
        for layer, router in enumerate(self.routers):
            if router.capture_fn is not None:
                router.capture_fn(torch.from_numpy(experts[:, layer].copy()))
        return experts

    def _tell(self, names: list[str], work: dict[str, int], positions: NDArray[Any]) -> None:
        tokens = torch.from_numpy((positions * 7 % 300).astype(np.int32))
        if self.second:
            for index, name in enumerate(names):
                self.req_states.req_id_to_index[name] = index
                self.req_states.prompt_len.np[index] = self.requests[name].prompt
            batch = SimpleNamespace(
                req_ids=names,
                num_reqs=len(names),
                num_scheduled_tokens=np.array([work[n] for n in names], np.int32),
                positions=torch.from_numpy(positions),
                input_ids=tokens,
            )
            self.execute_model_state = SimpleNamespace(input_batch=batch)
            return
        self.positions[: len(positions)] = torch.from_numpy(positions)
        self.input_ids.gpu[: len(positions)] = tokens
        self.input_batch = SimpleNamespace(req_ids=names, num_reqs=len(names))

    @property
    def runner(self) -> Any:
        """What the plugin reads; the first version has `requests`, the second `req_states`."""
        if self.second:
            return self
        known = {n: SimpleNamespace(num_prompt_tokens=a.prompt) for n, a in self.requests.items()}
        return SimpleNamespace(
            positions=self.positions,
            input_ids=self.input_ids,
            input_batch=self.input_batch,
            requests=known,
            execute_model_state=None,
        )
