"""The splits over ranks that an engine offers for a model on so many GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.projection.parallelism import Parallelism

_BY_LAYERS = ("llamacpp",)  # splits a model over GPUs by whole layers
_ONE_GPU = ("mlx",)
_ALL_OR_NONE = ("trtllm",)  # attention is data parallel over all ranks or none


def list_splits(model: MoEModel, gpus: int, engine: str) -> list[Parallelism]:
    """Every split of `model` over exactly `gpus` that `engine` can be told.

    Experts go whole to all ranks of a stage or are sliced over all of them: vLLM's
    `--enable-expert-parallel` knows no third. Stages and data-parallel groups are not mixed.
    """
    return [split for split in _counted(model, gpus, engine) if _possible(split, model, gpus)]


def _counted(model: MoEModel, gpus: int, engine: str) -> Iterator[Parallelism]:
    if engine in _ONE_GPU:
        if gpus == 1:
            yield Parallelism()
        return
    if engine in _BY_LAYERS:
        yield Parallelism(pp=gpus)
        return
    for tp in (each for each in range(1, gpus + 1) if gpus % each == 0):
        others = gpus // tp
        groups = {(others, 1), (1, others)}  # data-parallel groups, pipeline stages
        for dp, pp in sorted(groups):
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
