"""The evaluation callback's log, and what stands in it after one `llama_decode`.

llama.cpp names the results of every MoE layer alike, whatever the architecture (`build_moe_ffn` of
src/llama-graph.cpp): `ffn_moe_topk-N` are the chosen ids of layer N. One `llama_decode` computes a
graph for every micro-batch, so a layer's rows arrive in pieces, in the order of the tokens. The
last layer computes only the tokens whose logits were asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.llamacpp.engine import EvalCallback
from moeprof.capture.llamacpp.ggml import MAX_NAME, Ggml
from moeprof.errors import InputError
from moeprof.model import MoEModel

EXPERTS = ("ffn_moe_topk",)
# Of these the last that a layer computes is meant. The weights are those before the factor that
# some models scale all of them by (`ffn_moe_weights_scaled`).
WEIGHTS = ("ffn_moe_weights", "ffn_moe_weights_softmax", "ffn_moe_weights_norm")
SCORES = ("ffn_moe_probs", "ffn_moe_probs_biased", "ffn_moe_probs_masked")
LOGITS = ("ffn_moe_logits",)  # what Llama 4 chooses by
# What the callback finds at its user data: the head of the log, whose entries follow.
HEAD = np.dtype(
    [
        ("size", "i8"),  # bytes of the log, head included
        ("used", "i8"),  # of these
        ("lost", "i8"),  # results that found no room
        ("open", "i8"),  # whether results are wanted now
        (
            "stems",
            "u1",
            (len(EXPERTS + WEIGHTS + SCORES), MAX_NAME),
        ),  # their names without the layer's number
    ]
)
_ENTRY_BYTES = 1024  # more than a struct and its padding take


def wanted_results(
    model: MoEModel, *, weights: bool = False, margins: bool = False
) -> dict[str, tuple[str, ...]]:
    """By what is recorded, the names that it is computed under, one after the other."""
    scores = LOGITS if model.model_type == "llama4" else SCORES
    asked = {"experts": EXPERTS, "weights": WEIGHTS, "margins": scores}
    given = {"experts": True, "weights": weights, "margins": margins}
    return {kind: names for kind, names in asked.items() if given[kind]}


def compiled_callback(ggml: Ggml) -> Any:
    """The callback in machine code. InputError where Numba, which compiles it, does not work."""
    try:
        from moeprof.capture.llamacpp.kernels import load_callback

        return load_callback(ggml.tensor_get)
    except Exception as error:  # a broken installation fails in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"llama.cpp's callback cannot be compiled, Numba fails ({reason}): "
            "pip install --force-reinstall numba; if it has nowhere to cache, set NUMBA_CACHE_DIR"
        ) from None


class Tap:
    """Logs between `begin` and `end`; outside of them it lets everything pass (a warm-up).

    `function` comes from `compiled_callback`. `tokens` is the most of one `llama_decode`, at least
    one graph.
    """

    def __init__(
        self, function: Any, model: MoEModel, results: dict[str, tuple[str, ...]], tokens: int
    ) -> None:
        self._function = function
        stems = [name for names in results.values() for name in names]
        columns = sum(
            len(names) * (model.experts if kind == "margins" else model.top_k)
            for kind, names in results.items()
        )
        layers = len(model.moe_layers)
        # Entries if every token were a graph of its own; a span that is gathered lies behind them.
        size = tokens * layers * (4 * columns + _ENTRY_BYTES * len(stems))
        size += 4 * model.experts * tokens + HEAD.itemsize
        self._log = np.empty(-(-size // 8), np.int64).view(np.uint8)
        self._head = self._log[: HEAD.itemsize].view(HEAD)[0]
        self._head["size"], self._head["open"], self._head["stems"] = len(self._log), 0, 0
        for row, stem in zip(self._head["stems"], stems, strict=False):
            row[: len(stem)] = np.frombuffer(stem.encode(), np.uint8)

    @property
    def callback(self) -> EvalCallback:
        """For a context, which then keeps the tap alive."""
        return EvalCallback(self._function.address, self._log.ctypes.data, self)

    def begin(self) -> None:
        """What is computed from now on is traffic."""
        self._head["used"], self._head["lost"] = HEAD.itemsize, 0
        self._head["open"] = True

    def end(self) -> NDArray[np.uint8] | None:
        """A copy of what was logged; None if it had no room."""
        whole = self._head["open"] and not self._head["lost"]
        self._head["open"] = False
        return self._log[HEAD.itemsize : self._head["used"]].copy() if whole else None
