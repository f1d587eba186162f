"""What all rows of an import have in common, and the model that this makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.formats.block import Block, Findings, Options
from moeprof.trace.formats.cleaning import interleaving, recorded_places


@dataclass
class Survey:
    """What all rows have in common: known once a file was read to its end."""

    layers: set[int] = field(default_factory=set)
    highest_id: int = -1
    top_k: int | None = None
    tokens: int = 0
    token_ids: bool = False
    weights: bool | None = None
    requests: set[int] = field(default_factory=set)
    ascending: bool = True  # ids, in every place


def look_at(block: Block, survey: Survey, found: Findings) -> None:
    """Take one block into the survey. InputError where it differs from those before."""
    recorded = recorded_places(block)
    k = block.experts.shape[2]
    if survey.top_k not in (None, k):
        raise InputError(f"some tokens have {survey.top_k} experts a layer and others {k}")
    if survey.weights not in (None, block.weights is not None):
        raise InputError("some tokens have gate weights and others do not")
    if survey.top_k is None and (stride := interleaving(block)):
        found.note(
            f"rows look interleaved: a token resembles the one {stride} rows before it most, so "
            "neighbouring rows are not neighbouring tokens"
        )
    survey.top_k, survey.weights = k, block.weights is not None
    survey.layers |= set(np.array(block.layers)[np.atleast_1d(recorded.any(axis=0))].tolist())
    survey.highest_id = max(survey.highest_id, int(block.experts.max()))
    survey.tokens += len(block)
    survey.requests |= set(np.unique(block.request[block.request >= 0]).tolist())
    survey.token_ids |= block.token_id is not None
    if k > 1:
        rising = block.experts[:, :, 1:] > block.experts[:, :, :-1]
        survey.ascending &= bool((rising.all(axis=2) | ~recorded).all())


def rank_ordered(found: Findings, survey: Survey) -> bool | None:
    """Whether slot 0 is the first choice; ids that ascend in every place were sorted."""
    if survey.top_k == 1:
        return True
    if survey.ascending and survey.tokens * len(survey.layers) >= 32:
        found.note("the ids of every token are in ascending order: the router's rank is lost")
        return False
    return found.rank_ordered


def model_of(
    path: Path,
    known: MoEModel | None,
    options: Options,
    found: Findings,
    survey: Survey,
    layers: tuple[int, ...],
) -> tuple[MoEModel, tuple[int, ...]]:
    """The model, and the native index of each layer of the file."""
    experts = _experts(path, options, found, survey.highest_id, survey.top_k or 1)
    if known is None:
        return bare_model(found.model or path.name.split(".")[0], layers, experts, survey.top_k), (
            layers
        )
    if set(layers) <= set(known.moe_layers):
        return known, layers
    if len(layers) == len(known.moe_layers) and layers == tuple(range(len(layers))):
        found.note(f"layers of the file are counted from 0: they are {known.name}'s MoE layers")
        return known, known.moe_layers
    strange = next(n for n in layers if n not in known.moe_layers)
    raise InputError(f"{path}: layer {strange} is no MoE layer of {known.name}")


def bare_model(name: str, layers: tuple[int, ...], experts: int, top_k: int | None) -> MoEModel:
    """What routing alone says of a model."""
    return MoEModel(
        name=name,
        model_type="",
        hidden_size=0,
        layers=layers[-1] + 1,
        moe_layers=layers,
        experts=experts,
        top_k=top_k or 1,
    )


def _experts(path: Path, options: Options, found: Findings, highest: int, top_k: int) -> int:
    """The number of experts a layer, as it is stated or as far as ids go."""
    stated = options.experts or found.experts
    if stated is None:
        found.note(
            f"the number of experts is not in the file: {max(highest + 1, top_k)} is the highest "
            "id + 1; --model or --experts states it"
        )
        return max(highest + 1, top_k)
    if highest >= stated or top_k > stated:
        raise InputError(
            f"{path}: id {highest} and top-{top_k} do not go with {stated} experts a layer"
        )
    return stated
