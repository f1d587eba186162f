"""Every decoder layer in its turn, called as the model's own forward calls it.

What a layer needs beside hidden states (positions, masks, windows) the model's forward makes. So
the forward is run for every layer, and in it all layers but one hand on what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.products import wide_products
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch


class LayerTurns:
    """Runs one layer of `text`, whose decoder layers are `layers`, at a time."""

    def __init__(self, text: torch.nn.Module, layers: torch.nn.ModuleList) -> None:
        self._text = text
        self._turn = 0
        self._hidden: torch.Tensor | None = None  # what goes into the layer; None: the embeddings
        self._output: torch.Tensor | None = None
        self._in_tuple = False  # do layers return their hidden states so?
        for index, layer in enumerate(layers):
            layer.forward = partial(self._forward, index, layer.forward)

    def run(
        self,
        turn: int,
        ids: torch.Tensor,
        hidden: torch.Tensor | None = None,
        cache: Any | None = None,
    ) -> torch.Tensor:
        """[rows, columns, ...] hidden states behind layer `turn` of sequences without padding.

        `ids` are [rows, columns]; `hidden` is what goes in, None for the embeddings. `cache` is the
        layer's own (see `layer_cache`) where the columns before have run already.
        """
        self._turn, self._hidden, self._output = turn, hidden, None
        weights = next(self._text.parameters()).dtype
        with wide_products(weights, ids.device):
            self._text(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        output, self._hidden, self._output = self._output, None, None
        if output is None:
            raise InputError(f"the model never calls its layer {turn}: it cannot be streamed")
        return output

    def _forward(self, index: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        if index != self._turn:
            return (given,) if self._in_tuple else given
        if self._hidden is not None:
            args, kwargs = _with_hidden(args, kwargs, self._hidden)
        output = own(*args, **kwargs)
        self._in_tuple = isinstance(output, tuple)
        self._output = _hidden_of(output, args[0] if args else kwargs["hidden_states"])
        return output


def _with_hidden(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (hidden, *args[1:]), dict(kwargs)
    return args, {**kwargs, "hidden_states": hidden}


def _hidden_of(output: Any, given: torch.Tensor) -> torch.Tensor:
    """The hidden states a layer returned. InputError if it hands on more than them."""
    first, *more = output if isinstance(output, tuple) else (output,)
    if getattr(first, "shape", None) != given.shape or any(value is not None for value in more):
        raise InputError(
            "its decoder layers hand more to each other than hidden states: it cannot be streamed"
        )
    kept: torch.Tensor = first
    return kept
