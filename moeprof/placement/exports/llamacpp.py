"""llama.cpp's `-ot`: whole layers, for it stacks the experts of a layer in one tensor.

Read from ggml-org/llama.cpp, common/arg.cpp (`--override-tensor`, `--n-cpu-moe`), common/common.h
(`LLM_FFN_EXPS_REGEX`) and src/llama-model-loader.cpp: a pattern is searched in the tensor's name by
std::regex, patterns are divided by commas and end in =CPU. Hot experts cannot be told from cold
ones there; what a placement can choose is which layers stay on the GPU. Every layer reads k experts
a token, so for one sequence all are alike; for more, a layer of even load reads more distinct
experts, and those layers stay on the GPU.
"""

from __future__ import annotations

import shlex

import numpy as np
from numpy.typing import NDArray

from moeprof.placement.exports.written import Wanted, Written

_BATCH = 8  # sequences at a time, at which the layers are ordered


def write(wanted: Wanted) -> Written:
    """One pattern that names the layers whose experts the CPU keeps."""
    load, count = wanted.load(), wanted.hot_count()
    layers, experts = load.shape
    kept = count * layers // experts
    by_reads = np.argsort(_distinct(load), kind="stable")
    on_cpu = sorted(wanted.plan.layers[row] for row in by_reads[: layers - kept])
    flags = _flags(on_cpu)
    notes = [
        f"{kept} of {layers} layers keep their experts on the GPU, the room of {count} experts a "
        "layer: llama.cpp moves whole layers, it cannot tell hot experts from cold ones"
    ]
    if on_cpu and on_cpu == [n for n in wanted.plan.layers if n <= on_cpu[-1]]:
        notes.append(f"the same in short: --n-cpu-moe {on_cpu[-1] + 1}")
    return Written((flags + "\n").encode(), flags, notes)


def _flags(on_cpu: list[int]) -> str:
    if not on_cpu:
        return "--n-cpu-moe 0"
    layers = "|".join(map(str, on_cpu))
    pattern = rf"^blk\.({layers})\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
    return f"-ot {shlex.quote(pattern)}"


def _distinct(load: NDArray[np.int64]) -> NDArray[np.float64]:
    """[layers] distinct experts that `_BATCH` independent draws by load use, on average."""
    share = load / np.maximum(load.sum(axis=1, keepdims=True), 1)
    distinct: NDArray[np.float64] = (1 - (1 - share) ** _BATCH).sum(axis=1)
    return distinct
