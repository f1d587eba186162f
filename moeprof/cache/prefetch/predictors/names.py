"""The predictors by name, without compiling or importing any."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moeprof.cache.events import EventChunk, Steps
from moeprof.cache.prefetch.demand import Demand
from moeprof.errors import InputError
from moeprof.trace import Trace


class Question(NamedTuple):
    """What a predictor is asked, and what it may learn on."""

    trace: Trace
    steps: Steps
    demand: Demand
    learned_steps: int  # it may learn on the steps before this one
    lookahead: int  # events between saying and needing
    width: int  # experts to name
    recall: float
    seed: int


class Predictor(Protocol):
    """Names experts. It is given all chunks in order."""

    def name(self, chunk: EventChunk) -> NDArray[np.int32]:
        """[events, width] for each event of `chunk`, best first; -1 where it names fewer."""


class PredictorName(NamedTuple):
    """Where a predictor is written, whether it learns beforehand, and after whom."""

    place: str  # module and class
    learns: bool
    words: str
    source: str


PREDICTORS = {
    "previous-token": PredictorName(
        "past.PreviousToken",
        False,
        "what the layer needed in the step before, most tokens first",
        "github.com/Helldez/BigMoeOnEdge: docs/prefetch.md (temporal prefetch)",
    ),
    "static": PredictorName(
        "past.MostUsed",
        True,
        "what the layer used in most events of the learning window",
        "Fiddler places by popularity: arXiv 2402.07033",
    ),
    "markov": PredictorName(
        "markov.Markov",
        True,
        "what followed each expert of the event most often, shares added over its tokens",
        "expert affinity between layers: ExFlow, arXiv 2401.08383",
    ),
    "activation-matrix": PredictorName(
        "similar.ActivationMatrix",
        True,
        "what the earlier request used that is most like this one so far, by cosine",
        "MoE-Infinity, arXiv 2401.14361; github.com/EfficientMoE/MoE-Infinity: "
        "moe_infinity/memory/expert_tracer.py",
    ),
    "next-gate": PredictorName(
        "gate.NextGate",
        False,
        "what the next layer's router made of this layer's hidden state, as recorded",
        "Eliseev and Mazur, arXiv 2312.17238",
    ),
    "recall": PredictorName(
        "foreseen.Recall",
        False,
        "each needed expert with probability r, wrong ones for the rest of the width",
        "stands in for a next-layer gate whose recall is known",
    ),
    "oracle": PredictorName(
        "foreseen.Oracle", False, "what will be needed, as far as the width goes", "a bound"
    ),
}


def choose_predictors(names: str | Sequence[str]) -> list[str]:
    """The names asked for, each once; "all" is every one. Raises InputError for an unknown one."""
    if names == "all":
        return list(PREDICTORS)
    chosen = list(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in chosen:
        if name not in PREDICTORS:
            raise InputError(f"predictor '{name}' is not one of {', '.join(PREDICTORS)}")
    if not chosen:
        raise InputError(f"no predictor: give some of {', '.join(PREDICTORS)}")
    return chosen


def make_predictor(name: str, question: Question) -> Predictor:
    """The predictor called `name`, once it has learned. Raises InputError where it cannot."""
    module, _, kind = PREDICTORS[name].place.partition(".")
    made: Any = getattr(import_module(f"moeprof.cache.prefetch.predictors.{module}"), kind)
    predictor: Predictor = made(question)
    return predictor
