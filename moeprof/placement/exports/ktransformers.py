"""KTransformers' GPU experts: a .pt of counts that its `frequency` strategy makes masks of.

Read from kvcache-ai/ktransformers, doc/en/kt-kernel/experts-sched-Tutorial.md and
kt-kernel/python/expert_placement.py, and from its SGLang's
python/sglang/srt/layers/moe/kt_ep_wrapper.py (`_load_activation_frequency`): a dict saved by
torch, loaded with weights_only, whose `logical_count` is [hidden layers, experts]. Releases differ
in what they keep of it, the most used of all layers together or as many of every layer; counts
that are ordered alike in every layer give the same mask under both, and those are what we write:
the rank of the expert in its layer. `gpu_experts_mask` [hidden layers, experts] is that mask, for
programs that hand one to `KTMoEWrapper`.
"""

from __future__ import annotations

import io
import shlex

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import MissingExtraError
from moeprof.placement.exports.written import Wanted, Written


def write(wanted: Wanted) -> Written:
    """Ranks in place of counts, and the mask."""
    load, count = wanted.load(), wanted.hot_count()
    rank = _rank(load)
    dense = np.zeros(load.shape[1], np.int64)
    rows = np.array(wanted.by_hidden_layer(rank, dense), np.int64)
    mask = rows > load.shape[1] - count
    flags = (
        f"--kt-num-gpu-experts {count} --kt-expert-placement-strategy frequency "
        f"--init-expert-location {shlex.quote(wanted.path)}"
    )
    hit = load[rank > load.shape[1] - count].sum() / max(load.sum(), 1)
    note = (
        f"the GPU's {count} of {load.shape[1]} experts a layer took {hit:.1%} of the assignments; "
        "releases with --kt-expert-frequency-file read the file there"
    )
    return Written(_saved(rows, mask), flags, [note])


def _rank(load: NDArray[np.int64]) -> NDArray[np.int64]:
    """[layers, experts] 1 for the least used expert of a layer to E for the most; ties by id."""
    order = np.argsort(-load, axis=1, kind="stable")
    rank = np.empty_like(load)
    places = np.broadcast_to(np.arange(load.shape[1], 0, -1), load.shape)
    np.put_along_axis(rank, order, places, axis=1)
    return rank


def _saved(counts: NDArray[np.int64], mask: NDArray[np.bool_]) -> bytes:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "capture") from None
    file = io.BytesIO()
    torch.save(
        {"logical_count": torch.from_numpy(counts), "gpu_experts_mask": torch.from_numpy(mask)},
        file,
    )
    return file.getvalue()
