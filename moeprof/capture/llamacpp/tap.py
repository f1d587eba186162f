"""The evaluation callback's log, and what stands in it after one `llama_decode`.

llama.cpp names the results of every MoE layer alike, whatever the architecture (`build_moe_ffn` of
src/llama-graph.cpp): `ffn_moe_topk-N` are the chosen ids of layer N. One `llama_decode` computes a
graph for every micro-batch, so a layer's rows arrive in pieces, in the order of the tokens. The
last layer computes only the tokens whose logits were asked for.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.llamacpp.ggml import Ggml
from moeprof.model import MoEModel

EXPERTS = ("ffn_moe_topk",)
# Of these the last that a layer computes is meant. The weights are those before the factor that
# some models scale all of them by (`ffn_moe_weights_scaled`).
WEIGHTS = ("ffn_moe_weights", "ffn_moe_weights_softmax", "ffn_moe_weights_norm")
SCORES = ("ffn_moe_probs", "ffn_moe_probs_biased", "ffn_moe_probs_masked")
LOGITS = ("ffn_moe_logits",)  # what Llama 4 chooses by
_ENTRY_BYTES = 1024  # more than a struct, its padding and the log's head take


def wanted_results(
    model: MoEModel, *, weights: bool = False, margins: bool = False
) -> dict[str, tuple[str, ...]]:
    """By what is recorded, the names that it is computed under, one after the other."""
    scores = LOGITS if model.model_type == "llama4" else SCORES
    asked = {"experts": EXPERTS, "weights": WEIGHTS, "margins": scores}
    given = {"experts": True, "weights": weights, "margins": margins}
    return {kind: names for kind, names in asked.items() if given[kind]}


class Tap:
    """Logs between `begin` and `end`; outside of them it lets everything pass (a warm-up).

    `tokens` is the most of one `llama_decode`, at least one graph.
    """

    def __init__(
        self, ggml: Ggml, model: MoEModel, results: dict[str, tuple[str, ...]], tokens: int
    ) -> None:
        self._ggml = ggml
        self._stems = tuple(name for names in results.values() for name in names)
        columns = sum(
            len(names) * (model.experts if kind == "margins" else model.top_k)
            for kind, names in results.items()
        )
        layers = len(model.moe_layers)
        # Entries if every token were a graph of its own; a span that is gathered lies behind them.
        size = tokens * layers * (4 * columns + _ENTRY_BYTES * len(self._stems))
        self._log = np.empty((size + 4 * model.experts * tokens + _ENTRY_BYTES) // 8, np.int64)
        self._log[:4] = self._log.nbytes, 0, 0, 0

    @cached_property
    def callback(self) -> int:
        """`cb_eval` of a context. The tap must live as long as the context does."""
        from moeprof.capture.llamacpp.kernels import compile_callback

        self._compiled = compile_callback(self._stems, self._ggml.tensor_get)
        return int(self._compiled.address)

    @property
    def log(self) -> int:
        """`cb_eval_user_data`."""
        return int(self._log.ctypes.data)

    def begin(self) -> None:
        """What is computed from now on is traffic."""
        from moeprof.capture.llamacpp.kernels import HEAD_BYTES

        self._log[1:4] = HEAD_BYTES, 1, 0

    def end(self) -> NDArray[np.uint8] | None:
        """A copy of what was logged; None if it had no room."""
        from moeprof.capture.llamacpp.kernels import HEAD_BYTES

        used, was_open, lost = self._log[1:4].tolist()
        self._log[2] = 0
        if lost or not was_open:
            return None
        return self._log.view(np.uint8)[HEAD_BYTES:used].copy()
