"""Tiny random models of the three families, and an oracle that watches their routers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

VOCABULARY = 64
EOS, PAD = 2, 0
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "max_position_embeddings": 128,
}
M3_TEXT: dict[str, Any] = {
    **COMMON,
    "intermediate_size": 16,
    "dense_intermediate_size": 32,
    "shared_intermediate_size": 16,
    "rotary_dim": 4,
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "layer_types": ["full_attention", "full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_block_size": 4,
    "index_topk_blocks": 2,
}


def tiny_m3(layers: int = 4) -> Any:
    from transformers import MiniMaxM3VLForCausalLM, MiniMaxM3VLTextConfig

    kinds = {name: M3_TEXT[name][:layers] for name in ("mlp_layer_types", "layer_types")}
    text = {**M3_TEXT, "num_hidden_layers": layers, **kinds}
    return MiniMaxM3VLForCausalLM(MiniMaxM3VLTextConfig(**text))


def tiny_m3_vl() -> Any:
    from transformers import MiniMaxM3SparseForConditionalGeneration, MiniMaxM3VLConfig

    vision = {
        "hidden_size": 24,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = MiniMaxM3VLConfig(
        text_config=M3_TEXT,
        vision_config=vision,
        image_token_index=60,
        video_token_index=61,
        projector_hidden_size=32,
    )
    return MiniMaxM3SparseForConditionalGeneration(config)


def tiny_qwen3(layers: int = 4) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    moe = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}
    sparse = {"decoder_sparse_step": 1, "mlp_only_layers": [2], "num_hidden_layers": layers}
    config = Qwen3MoeConfig(**{**COMMON, **sparse}, **moe, intermediate_size=32)
    return Qwen3MoeForCausalLM(config)


def tiny_mixtral(layers: int = 4) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    moe = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16}
    return MixtralForCausalLM(MixtralConfig(**{**COMMON, "num_hidden_layers": layers}, **moe))


def tiny_llama(layers: int = 4) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**COMMON, "num_hidden_layers": layers, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes))


FAMILIES: dict[str, Callable[..., Any]] = {
    "m3": tiny_m3,
    "m3_vl": tiny_m3_vl,
    "qwen3": tiny_qwen3,
    "mixtral": tiny_mixtral,
    "llama": tiny_llama,
}
MOE_FAMILIES = ("m3", "m3_vl", "qwen3", "mixtral")


@pytest.fixture(scope="session")
def torch() -> Any:
    """torch, with transformers; the test is skipped where they are not installed."""
    pytest.importorskip("transformers", reason="needs the extra 'capture'")
    torch = pytest.importorskip("torch", reason="needs the extra 'capture'")
    torch.set_num_threads(1)  # for models this small, threads that wait for each other take longer
    return torch


@pytest.fixture(scope="session")
def build(torch: Any) -> Callable[..., Any]:
    """A function that gives the tiny model of a family, always the same object. What is compiled
    may be of fewer layers: compiling takes most of its test's time, and as long for each layer.
    """
    built: dict[Any, Any] = {}

    def get(family: str, **layers: int) -> Any:
        key = family, *layers.values()
        if key not in built:
            torch.manual_seed(0)
            built[key] = spread_routers(FAMILIES[family](**layers).eval())
        return built[key]

    return get


def spread_routers(model: Any) -> Any:
    """Biases for choosing, so that ids recomputed from logits would be wrong."""
    import torch

    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape) * 0.1)
    return model


@pytest.fixture
def m3(build: Callable[[str], Any]) -> Iterator[Any]:
    """The tiny M3: layer 0 dense, layers 1 to 3 of 16 experts, top-4. Left as it was found."""
    model = build("m3")
    yield model
    assert_untouched(model)


def assert_untouched(model: Any) -> None:
    """No hook and no attribute of ours is left on `model`."""
    assert "generate" not in vars(model)
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        kwargs = (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs)
        assert not any(hooks) and not any(kwargs)


class Oracle:
    """Hooks on the router classes by name, that keep everything they return, forward by forward.

    `calls[layer][forward]` is `(weights, ids)` of [rows x columns, k], padding included.
    """

    def __init__(self, model: Any) -> None:
        self.calls: dict[int, list[tuple[Any, Any]]] = {}
        self._handles = []
        for path, module in model.named_modules():
            if type(module).__name__.endswith("TopKRouter"):
                layer = int(re.findall(r"\.(\d+)\.", path)[0])
                self.calls[layer] = []
                self._handles.append(module.register_forward_hook(self._keep(layer)))

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            weights, ids = output[1], output[2]
            self.calls[layer].append((weights.detach().clone().numpy(), ids.clone().numpy()))

        return hook

    @property
    def forwards(self) -> int:
        return len(next(iter(self.calls.values())))

    def ids(self, layer: int, live: list[Any]) -> Any:
        """What the trace must hold of `layer`; `live[forward]` is its mask, [rows, columns]."""
        pairs = zip(self.calls[layer], live, strict=True)
        return np.concatenate([ids[np.asarray(mask).reshape(-1) != 0] for (_, ids), mask in pairs])

    def weights(self, layer: int, live: list[Any]) -> Any:
        """The same of the gate weights."""
        pairs = zip(self.calls[layer], live, strict=True)
        return np.concatenate([w[np.asarray(mask).reshape(-1) != 0] for (w, _), mask in pairs])

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def padded(torch: Any) -> tuple[Any, Any]:
    """Three prompts of 7, 4 and 6 tokens: ids and mask, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY - 4, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 1)):
        mask[row, :padding] = 0
        ids[row, :padding] = PAD
    return ids, mask


def end_rows_at(lengths: dict[int, int]) -> Any:
    """A logits processor: row r chooses EOS once it is `lengths[r]` columns long, else never."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class EndRows(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            scores[:, EOS] = -1e9
            for row, length in lengths.items():
                if input_ids.shape[1] >= length:
                    scores[row, EOS] = 1e9
            return scores

    return LogitsProcessorList([EndRows()])


def live_rows(sequences: Any, mask: Any) -> list[Any]:
    """The traffic of `generate`, from its result: [rows, columns] of truth for each forward.

    The prompt's own tokens, then one column a forward, of rows that have not ended.
    """
    width = mask.shape[1]
    new = np.asarray(sequences)[:, width:]
    ended = np.logical_or.accumulate(new == EOS, axis=1)
    return [np.asarray(mask), *[~ended[:, [column]] for column in range(new.shape[1] - 1)]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs: run as root, outside of a container")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
