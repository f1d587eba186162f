"""The routing profile of llama.cpp's cache fork: `--moe-cache-profile F --moe-cache-slots N`.

Read from thecodacus/llama.cpp, src/llama-model.cpp (`init_moe_expert_cache`): lines
`pos,layer,id,id,...` of at most 4,095 characters; a negative pos is a prompt's and passed over.
The ids of a layer are counted over all lines, and the N most counted, lower ids first among equals,
are copied to the GPU. So a layer's experts are written in lines of growing length, which give each
one count more than the next: the same experts for any N.
"""

from __future__ import annotations

import shlex

import numpy as np

from moeprof.errors import InputError
from moeprof.placement.exports.written import Wanted, Written

_LINE = 4095


def write(wanted: Wanted) -> Written:
    """Experts by load; one that was never used is left out, as the fork's own profiles do."""
    load, count = wanted.load(), wanted.hot_count()
    lines = []
    for layer, used in zip(wanted.plan.layers, load, strict=True):
        order = np.argsort(-used, kind="stable")[: int((used > 0).sum())].tolist()
        lines += [
            f"{pos},{layer},{','.join(map(str, order[: pos + 1]))}" for pos in range(len(order))
        ]
    if max(map(len, lines), default=0) > _LINE:
        raise InputError(
            f"a line of this profile has more than {_LINE} characters, which the fork cuts off: "
            f"{load.shape[1]} experts are too many for it"
        )
    flags = f"--moe-cache-profile {shlex.quote(wanted.path)} --moe-cache-slots {count}"
    note = "it is for experts that are on the CPU: add -ncmoe with the number of layers"
    return Written(("\n".join(lines) + "\n").encode(), flags, [note])
