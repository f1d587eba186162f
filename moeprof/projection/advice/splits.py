"""The splits over ranks that an engine offers for a model on so many GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.projection.parallelism import Parallelism

_BY_LAYERS = ("llamacpp",)  # splits a model over GPUs by whole layers
_ONE_GPU = ("mlx",)
_ALL_OR_NONE = ("trtllm",)  # attention is data parallel over all ranks or none


def list_splits(model: MoEModel, gpus: int, engine: str, nodes: int = 1) -> list[Parallelism]:
    """The splits of `model` over exactly `gpus` that `engine` can be told.

    Experts go whole to all ranks of a stage or are sliced over all of them: vLLM's
    `--enable-expert-parallel` knows no third. Pipeline stages, which no served run that the laws
    were fitted on had, are a node each, or any number where the heads do not split over all GPUs;
    they are not mixed with data-parallel groups.
    """
    heads = model.attention.heads if model.attention else gpus
    stages = range(2, gpus + 1) if heads % gpus else (nodes,)
    counted = _counted(model, gpus, engine, stages)
    return [split for split in counted if _possible(split, model, gpus)]


def split_name(split: Parallelism) -> str:
    """TP4 DP2 EP8: what is not one."""
    parts = {"TP": split.tp, "DP": split.dp, "PP": split.pp, "EP": split.ep}
    return " ".join(f"{name}{ways}" for name, ways in parts.items() if ways > 1) or "one rank"


def _counted(
    model: MoEModel, gpus: int, engine: str, stages: Iterable[int]
) -> Iterator[Parallelism]:
    if engine in _ONE_GPU:
        if gpus == 1:
            yield Parallelism()
        return
    if engine in _BY_LAYERS:
        yield Parallelism(pp=gpus)
        return
    for tp in (each for each in range(1, gpus + 1) if gpus % each == 0):
        others = gpus // tp
        groups = {(others, 1), *((1, others) for pp in stages if pp == others)}
        for dp, pp in sorted(groups):  # data-parallel groups, pipeline stages
            if dp > 1 and tp > 1 and engine in _ALL_OR_NONE:
                continue
            for ep in sorted({1, tp * dp} if model.experts else {1}):
                yield Parallelism(tp, ep, dp, pp)


def _possible(split: Parallelism, model: MoEModel, gpus: int) -> bool:
    try:
        split.check_fits_shape(model, gpus)
    except InputError:
        return False
    return True
