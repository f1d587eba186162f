"""Reading a trace for comparison: plain Arrow, none of moeprof's own reading."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.engines.vllm.tiny_model import MOE_LAYERS


class Recorded:
    """Every row of a trace that names its requests plainly."""

    def __init__(self, path: Path) -> None:
        files = sorted((path / "segments").glob("*.arrows"))
        table = pa.concat_tables(pa.ipc.open_stream(file).read_all() for file in files)
        self.step, self.request, self.position = (
            table[name].to_numpy() for name in ("step", "request", "position")
        )
        self.phase = table["phase"].to_numpy()
        self.token_id = table["token_id"].to_numpy() if "token_id" in table.column_names else None
        self.experts = np.stack(
            [np.array(table[f"experts.{layer}"].to_pylist()) for layer in MOE_LAYERS], axis=1
        )  # [rows, layers, k]
        rows = pa.ipc.open_stream(path / "requests.arrows").read_all().to_pylist()
        self.requests: dict[str, dict[str, Any]] = {}
        for row in rows:  # the last of each holds
            self.requests[row["name"] or str(row["index"])] = row

    def rows_of(self, name: str) -> NDArray[np.intp]:
        """Row numbers of a request by the name that the client gave it, in engine order."""
        return np.flatnonzero(self.request == self.requests[f"cmpl-{name}-0"]["index"])


def as_sets(experts: NDArray[Any]) -> NDArray[Any]:
    """Ids of a choice in one order: routers do not say which of them came first."""
    return np.sort(experts.astype(np.int64), axis=-1)


def returned_experts(answer: dict[str, Any]) -> NDArray[Any]:
    """[tokens, MoE layers, k] as the server itself returns them."""
    encoded = answer["choices"][0]["routed_experts"]
    every = np.load(io.BytesIO(base64.b64decode(encoded)), allow_pickle=False)
    return np.asarray(every[:, list(MOE_LAYERS)])


class Oracle:
    """The same checkpoint in transformers, its routers asked directly."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import Qwen3MoeForCausalLM

        self._model = Qwen3MoeForCausalLM.from_pretrained(checkpoint).eval()

    def experts(self, token_ids: list[int]) -> NDArray[Any]:
        """[tokens, MoE layers, k] of one sequence."""
        import torch

        with torch.no_grad():
            out = self._model(torch.tensor([token_ids]), output_router_logits=True)
        chosen = [logits.topk(2, dim=-1).indices.numpy() for logits in out.router_logits]
        return np.stack(chosen, axis=1)
