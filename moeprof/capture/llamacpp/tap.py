"""What llama.cpp's evaluation callback hands over, from the routers of one `llama_decode`.

llama.cpp names the results of every MoE layer alike, whatever the architecture (`build_moe_ffn` of
src/llama-graph.cpp): `ffn_moe_topk-N` are the chosen ids of layer N. One `llama_decode` computes a
graph for every micro-batch, so a layer's rows arrive in pieces, in the order of the tokens. The
last layer computes only the tokens whose logits were asked for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.failure import FailureLatch
from moeprof.capture.llamacpp.ggml import Ggml, Tensor, read_rows
from moeprof.model import MoEModel
from moeprof.trace.schema import expert_dtype

EXPERTS = ("ffn_moe_topk",)
# Of these the last that a layer computes is meant. The weights are those before the factor that
# some models scale all of them by (`ffn_moe_weights_scaled`).
WEIGHTS = ("ffn_moe_weights", "ffn_moe_weights_softmax", "ffn_moe_weights_norm")
SCORES = ("ffn_moe_probs", "ffn_moe_probs_biased", "ffn_moe_probs_masked")
LOGITS = ("ffn_moe_logits",)  # what Llama 4 chooses by

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


@dataclass(frozen=True)
class Routed:
    """The routing of T tokens of one `llama_decode`. L layers, k experts."""

    forwards: tuple[int, ...]  # tokens of each micro-batch
    experts: NDArray[np.unsignedinteger]  # [T, L, k]
    recorded: NDArray[np.bool_]  # [T, L]
    weights: NDArray[np.float16] | None = None  # [T, L, k]
    margins: NDArray[np.float16] | None = None  # [T, L]

    @property
    def nbytes(self) -> int:
        """Size of the arrays."""
        arrays = (self.experts, self.recorded, self.weights, self.margins)
        return sum(array.nbytes for array in arrays if array is not None)


class Tap:
    """Collects between `begin` and `end`; outside of them it lets everything pass (a warm-up).

    Nothing it does reaches llama.cpp: an error of ours trips `latch`, and Ctrl-C, which Python
    raises in whatever runs next, waits for `end`.
    """

    def __init__(
        self, ggml: Ggml, model: MoEModel, *, weights: bool = False, margins: bool = False
    ) -> None:
        self._ggml = ggml
        self._model = model
        scores = LOGITS if model.model_type == "llama4" else SCORES
        self._chains: dict[str, tuple[str, ...]] = {"experts": EXPERTS}
        if weights:
            self._chains["weights"] = WEIGHTS
        if margins:
            self._chains["margins"] = scores
        self._places = {
            f"{stem}-{layer}".encode(): (kind, rank, slot)
            for kind, chain in self._chains.items()
            for rank, stem in enumerate(chain)
            for slot, layer in enumerate(model.moe_layers)
        }
        self._latch: FailureLatch | None = None
        self._open = False
        self._interrupt: BaseException | None = None
        self._pieces: dict[str, list[list[tuple[int, NDArray[Any]]]]] = {}  # by kind, by slot

    def listen(self, latch: FailureLatch) -> None:
        """Errors of ours trip `latch`."""
        self._latch = latch

    @cached_property
    def callback(self) -> Any:
        """`cb_eval` of a context. The tap must live as long as the context does."""
        from moeprof.capture.llamacpp.kernels import compile_callback

        self._read_callback = _CALLBACK(self._read)
        stems = tuple(stem for chain in self._chains.values() for stem in chain)
        self._compiled = compile_callback(stems, self._read_callback)
        return self._compiled.address

    def begin(self) -> None:
        """What is computed from now on is traffic."""
        self._pieces = {kind: [[] for _ in self._model.moe_layers] for kind in self._chains}
        self._open = self._latch is not None and not self._latch.tripped

    def end(self, tokens: int, outputs: NDArray[np.bool_]) -> Routed | None:
        """What the routers made of the `tokens`; None if it could not be read.

        `outputs` is [tokens], the tokens whose logits were asked for. Raises KeyboardInterrupt
        if that came meanwhile.
        """
        was_open, self._open = self._open, False
        if self._interrupt is not None:
            interrupt, self._interrupt = self._interrupt, None
            raise interrupt
        if not was_open or self._latch is None or self._latch.tripped:
            return None
        try:
            return self._assemble(tokens, outputs)
        except Exception as error:
            self._latch.trip(error, "reading llama.cpp's routers")
            return None

    def _read(self, address: int, ask: bool, state: int | None) -> bool:
        try:
            if self._open and self._latch is not None and not self._latch.tripped:
                self._take(address)
        except Exception as error:
            if self._latch is not None:
                self._latch.trip(error, "reading llama.cpp's routers")
        except BaseException as interrupt:  # False would cut llama.cpp's computation short
            self._interrupt = interrupt
        return True

    def _take(self, address: int) -> None:
        tensor = Tensor.from_address(address)
        place = self._places.get(tensor.name)
        if place is None:
            return
        kind, rank, slot = place
        model = self._model
        columns = model.experts if kind == "margins" else model.top_k
        rows = read_rows(self._ggml.get(address, tensor), tensor, columns)
        if kind == "margins":
            rows = margins_of(rows, model.top_k)
        pieces = self._pieces[kind][slot]
        if pieces and rank > pieces[-1][0]:
            pieces.pop()
        pieces.append((rank, rows))

    def _assemble(self, tokens: int, outputs: NDArray[np.bool_]) -> Routed:
        layers, k = len(self._model.moe_layers), self._model.top_k
        recorded = np.zeros((tokens, layers), bool)
        experts = np.zeros((tokens, layers, k), expert_dtype(self._model.experts))
        weights = margins = None
        if "weights" in self._chains:
            weights = np.zeros((tokens, layers, k), np.float16)
        if "margins" in self._chains:
            margins = np.full((tokens, layers), np.nan, np.float16)
        for slot, layer in enumerate(self._model.moe_layers):
            ids = self._joined("experts", slot)
            rows = _places_of(ids, tokens, outputs, layer)
            if ids.size and not 0 <= ids.min() <= ids.max() < self._model.experts:
                raise ValueError(f"layer {layer}: ids outside of {self._model.experts} experts")
            recorded[rows, slot], experts[rows, slot] = True, ids
            if weights is not None:
                weights[rows, slot] = self._joined("weights", slot)
            if margins is not None:
                margins[rows, slot] = self._joined("margins", slot)[:, 0]
        return Routed(self._forwards(tokens), experts, recorded, weights, margins)

    def _joined(self, kind: str, slot: int) -> NDArray[Any]:
        pieces = [rows for _, rows in self._pieces[kind][slot]]
        return np.concatenate(pieces) if pieces else np.empty((0, self._model.top_k), np.int32)

    def _forwards(self, tokens: int) -> tuple[int, ...]:
        """Tokens of each micro-batch, as the layers that saw all of them have it."""
        seen = {tuple(len(rows) for _, rows in pieces) for pieces in self._pieces["experts"]}
        whole = {sizes for sizes in seen if sum(sizes) == tokens}
        if len(whole) > 1:
            raise ValueError("layers disagree about the micro-batches")
        return whole.pop() if whole else (tokens,)


def margins_of(scores: NDArray[np.floating], top_k: int) -> NDArray[np.floating]:
    """[T, 1] score of the last chosen expert less that of the first not chosen. [T, experts]."""
    experts = scores.shape[1]
    if experts == top_k:
        return np.full((len(scores), 1), np.nan, np.float32)
    ordered = np.partition(scores, (experts - top_k - 1, experts - top_k), axis=1)
    difference: NDArray[np.floating] = np.diff(ordered, axis=1)
    return difference[:, experts - top_k - 1][:, None]


def _places_of(
    ids: NDArray[Any], tokens: int, outputs: NDArray[np.bool_], layer: int
) -> NDArray[np.intp]:
    """Which of the tokens a layer's rows belong to. ValueError for a number that fits neither."""
    if len(ids) == tokens:
        return np.arange(tokens)
    if len(ids) in (0, int(outputs.sum())):
        return np.flatnonzero(outputs)[: len(ids)]
    raise ValueError(f"layer {layer} gave {len(ids)} rows of {tokens} tokens")
