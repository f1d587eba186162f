"""Generating from one prompt, as llama.cpp would without us."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.llamacpp.engine import Engine, Sampling
from moeprof.capture.llamacpp.listener import Listener


def generate(
    engine: Engine,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None,
    listener: Listener | None = None,
    *,
    every: bool = True,
) -> list[int]:
    """The new tokens of one prompt, run as a sequence of its own.

    `every` asks for logits of all prompt tokens, else of the last. `listener` sees each decode.
    """
    engine.start(sampling)
    for start in range(0, len(prompt), engine.batch):
        part = prompt[start : start + engine.batch]
        outputs = np.full(len(part), every)
        outputs[-1] |= start + len(part) == len(prompt)
        _decode(engine, part, start, outputs, listener)
    new: list[int] = []
    while True:
        new.append(engine.sample())
        if len(new) == max_new_tokens or engine.ends(new[-1]):
            return new
        position = len(prompt) + len(new) - 1
        _decode(engine, new[-1:], position, np.ones(1, bool), listener)


def _decode(
    engine: Engine,
    tokens: Sequence[int],
    position: int,
    outputs: NDArray[np.bool_],
    listener: Listener | None,
) -> None:
    if listener is None:
        engine.decode(tokens, position, outputs)
        return
    with listener.decoding(tokens, position, outputs):
        engine.decode(tokens, position, outputs)
