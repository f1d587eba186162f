"""EPLB as its authors describe it, in plain loops over 32-bit numbers: slow, and easy to read."""

from __future__ import annotations

import os
from importlib import util
from types import ModuleType

import numpy as np
import pytest


def deepseek_eplb() -> ModuleType:
    """DeepSeek's own module, from the file that MOEPROF_EPLB names; skips the test without it."""
    path = os.environ.get("MOEPROF_EPLB")
    if path is None:
        pytest.skip("MOEPROF_EPLB names no eplb.py of github.com/deepseek-ai/EPLB")
    pytest.importorskip("torch", reason="DeepSeek's eplb.py needs torch")
    spec = util.spec_from_file_location("deepseek_eplb", path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def slow_eplb(load: list[float], slots: int, groups: int, nodes: int, gpus: int) -> list[int]:
    """One layer's experts by slot."""
    weight = [np.float32(value) for value in load]
    if groups % nodes:
        groups = nodes = 1
    size = len(weight) // groups
    members = [list(range(start, start + size)) for start in range(0, len(weight), size)]
    of_group = [np.float32(sum(weight[expert] for expert in group)) for group in members]
    chosen = []
    for node in pack(of_group, nodes):
        experts = [expert for group in node for expert in members[group]]
        replicas, shares = replicate([weight[expert] for expert in experts], slots // nodes)
        for gpu in pack(shares, gpus // nodes):
            chosen += [experts[replicas[replica]] for replica in gpu]
    return chosen


def replicate(weight: list[np.float32], slots: int) -> tuple[list[int], list[np.float32]]:
    """Experts by replica, the originals first, and the load of each replica."""
    count = [1] * len(weight)
    replicas = list(range(len(weight)))
    while len(replicas) < slots:
        shares = [w / np.float32(n) for w, n in zip(weight, count, strict=True)]
        heaviest = shares.index(max(shares))
        replicas.append(heaviest)
        count[heaviest] += 1
    return replicas, [weight[expert] / np.float32(count[expert]) for expert in replicas]


def pack(weight: list[np.float32], packs: int) -> list[list[int]]:
    """Items of each pack: heaviest first, to the lightest pack that has room."""
    room = len(weight) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    filled: list[list[int]] = [[] for _ in range(packs)]
    total = [np.float32(0)] * packs
    for item in sorted(range(len(weight)), key=lambda item: -weight[item]):
        pack = min((p for p in range(packs) if len(filled[p]) < room), key=lambda p: total[p])
        filled[pack].append(item)
        total[pack] += weight[item]
    return filled
