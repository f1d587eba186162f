"""Which experts an engine that moves none keeps on its device, where it does not count uses.

The strategies of KTransformers, --kt-expert-placement-strategy: `generate_uniform_masks`,
`generate_front_loading_masks` and `generate_random_masks` of python/sglang/srt/layers/moe/
kt_ep_wrapper.py in github.com/kvcache-ai/sglang. Frequency is `static` with uses of tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KT_SEED = 42


def placed(strategy: str, layers: int, experts: int, slots: int) -> NDArray[np.int64]:
    """[slots] the items that are resident under `strategy`: uniform, front-loading or random."""
    items = layers * experts
    if strategy == "front-loading":
        return np.arange(min(slots, items))
    if strategy == "random":
        return torch_permutation(items, KT_SEED)[:slots]
    each, more = divmod(min(slots, items), layers)
    counts = each + (np.arange(layers) < more)
    return np.concatenate([layer * experts + np.arange(n) for layer, n in enumerate(counts)])


def torch_permutation(n: int, seed: int) -> NDArray[np.int64]:
    """What torch.randperm(n) gives on a CPU from a generator of that seed."""
    words = np.random.RandomState(seed).randint(0, 2**32, max(n - 1, 0), dtype=np.uint32)
    order = np.arange(n)
    for i, word in enumerate(words.tolist()):
        j = i + word % (n - i)
        order[i], order[j] = order[j], order[i]
    return order
