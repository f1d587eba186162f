"""What recording makes of the models of every family: the trace against the routers themselves.

`docs/families.py` writes down what `tests/capture/test_families.py` checks.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture import record
from moeprof.capture.transformers.routers.reading import routing_in_output
from moeprof.errors import MoeprofError
from moeprof.trace import open_trace

from .router_classes import RouterClass, router_classes
from .tiny_models import EXPERTS, TOP_K, WIDTH, model_classes, tiny_model

WHOLE_MODELS = ("ForCausalLM", "Generation", "Diffusion")
# Parts that can be recorded where the whole model has several towers.
PARTS = {"DiffusionGemmaEncoderTextModel", "Qwen3OmniMoeTalkerModel"}
TAKE_EMBEDDINGS = {"Qwen3OmniMoeTalkerModel"}
# Routers of which nothing is recorded though their family is, and why.
LEFT_OUT = {
    "Dots3NoteVisionTopKRouter": "it routes patches of images, and only text is recorded",
    "Qwen3OmniMoeTextTopKRouter": "no model of transformers has it",
}
# JetMoE's attention is a mixture of experts too; the MLP's is the one that is recorded.
NOT_RECORDED = re.compile(r"vision|visual|audio|attention")


@dataclass(frozen=True)
class Outcome:
    """What recording made of one model: compared id by id, or refused."""

    model: str
    present: frozenset[str]  # router classes in the model
    compared: frozenset[str] = frozenset()  # those whose choices the trace holds
    told: frozenset[str] = frozenset()  # those that return ids; for others their experts are asked
    refusal: str = ""


def outcomes_with(router: RouterClass) -> list[Outcome]:
    """Of the models of its family that have this router."""
    return [o for o in outcomes(router.family) if router.name in o.present]


@cache
def outcomes(family: str) -> tuple[Outcome, ...]:
    """Of the models of `family` that have routers. AssertionError where a trace is wrong."""
    names = {router.name for router in router_classes() if router.family == family}
    found = []
    for kind in _kinds(family):
        model = tiny_model(kind)
        present = frozenset({type(module).__name__ for module in model.modules()} & names)
        if present:
            found.append(_record(model, present))
    return tuple(found)


def _kinds(family: str) -> Iterator[Any]:
    """Whole language models, with and without towers for images and sound, or what there is."""
    kinds = list(model_classes(family))
    kinds = [k for k in kinds if not any(k is not o and issubclass(k, o) for o in kinds)]  # aliases
    whole = [kind for kind in kinds if kind.__name__.endswith(WHOLE_MODELS)]
    yield from whole or kinds[:1]
    yield from (kind for kind in kinds if kind.__name__ in PARTS)


def _record(model: Any, routers: frozenset[str]) -> Outcome:
    name = type(model).__name__
    spread_routers(model, routers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.moetrace"
        try:
            with RouterOracle(model, routers) as oracle, record(model, path, weights=True) as done:
                _run(model)
        except MoeprofError as error:
            return Outcome(name, routers, refusal=str(error))
        assert done.error is None and done.dropped == 0, (name, done.error, done.drop_reasons)
        oracle.compare(path)
    return Outcome(name, routers, frozenset(oracle.called), frozenset(oracle.told))


def _run(model: Any) -> None:
    """A forward of two rows, and a few new tokens where the model generates."""
    import torch

    source = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 56, (2, 6), generator=source)
    with torch.no_grad():
        if type(model).__name__ in TAKE_EMBEDDINGS:
            model(inputs_embeds=torch.randn(2, 6, WIDTH, generator=source))
        else:
            model(input_ids=ids)
        if model.can_generate():
            no_end = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False}
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, **no_end)


class RouterOracle:
    """Hooks on the router classes by name, that keep what each said, layer by layer."""

    def __init__(self, model: Any, names: frozenset[str]) -> None:
        self.called: set[str] = set()
        self.told: set[str] = set()
        self._said: dict[int, list[tuple[Any, Any]]] = {}  # by layer: weights and ids of a call
        self._handles = [
            module.register_forward_hook(self._keep(path))
            for path, module in model.named_modules()
            if type(module).__name__ in names and not NOT_RECORDED.search(path)
        ]

    def compare(self, path: Path) -> None:
        """Raises AssertionError unless the trace at `path` holds what was said, and no more."""
        trace = open_trace(path)
        assert self._said and list(trace.layers) == sorted(self._said)
        for layer, calls in self._said.items():
            weights, ids = (np.concatenate(part) for part in zip(*calls, strict=True))
            assert np.array_equal(trace.experts(layer), ids), layer
            np.testing.assert_allclose(trace.weights(layer), weights, rtol=2e-3, atol=1e-4)
            assert len(np.unique(ids)) > TOP_K  # or the comparison says little

    def _keep(self, path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            name = type(module).__name__
            weights, ids = chosen(name, module, output)
            k = ids.shape[-1]
            self.called.add(name)
            if routing_in_output(output, k) is not None:
                self.told.add(name)
            said = weights.float().reshape(-1, k).numpy().copy(), ids.reshape(-1, k).numpy().copy()
            self._said.setdefault(_layer_of(path), []).append(said)

        return hook

    def __enter__(self) -> RouterOracle:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def chosen(name: str, module: Any, output: Any) -> tuple[Any, Any]:
    """Weights and ids, `[..., k]`, as the model's own code has them."""
    import torch

    if name == "DbrxRouter":  # the block around it chooses: DbrxFFN.route_tokens_to_experts
        weights, ids = output.softmax(dim=1).topk(TOP_K, dim=-1)
        return weights / torch.norm(weights, p=1.0, dim=-1, keepdim=True), ids
    if name == "Llama4Router":
        logits, ids = output[1].topk(module.top_k, dim=1)
        return logits.sigmoid(), ids
    if name == "JetMoeTopKGating":
        logits, ids = output[4].topk(module.top_k, dim=1)
        return logits.softmax(dim=1), ids
    return output[1], output[2]


def spread_routers(model: Any, names: frozenset[str]) -> None:
    """Random weights and biases, so that many experts are chosen, and not by logits alone."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            std = 0.5 if type(module).__name__ in names else 0.05
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                if name == "tid2eid":  # DeepSeek-V4: from a token to its experts
                    tensor.copy_(torch.rand(len(tensor), EXPERTS).topk(TOP_K).indices)
                elif "bias" in name and tensor.shape == (EXPERTS,):
                    tensor.normal_(std=0.1)
                elif isinstance(tensor, torch.nn.Parameter) and tensor.ndim > 1:
                    tensor.normal_(std=std)  # some of it transformers leaves as it lay in memory


def _layer_of(path: str) -> int:
    """The number after the name of the list of layers."""
    (number,) = re.findall(r"\b(?:layers|blocks)\.(\d+)\.", path)
    return int(number)
