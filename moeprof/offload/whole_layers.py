"""Experts placed by whole layers, as llama.cpp's `--n-cpu-moe N` does: no cache, nothing moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moeprof.cache.results import MissStream
from moeprof.offload.second_tier import replay_second_tier
from moeprof.offload.traffic import Recording, Traffic, all_missed

WHOLE_LAYERS = "whole-layers"


def place_layers(
    recording: Recording, first: int, resident_layers: int, host_slots: int | None = None
) -> Traffic:
    """The traffic of the steps from `first` on: the last `resident_layers` miss nothing, the
    layers before them everything. `host_slots` as in `replay_traffic`.
    """
    stream = all_missed(recording)
    asked = len(stream.counts) - resident_layers
    counts = np.where(np.arange(len(stream.counts))[:, None] < asked, stream.counts, 0)
    stored = np.zeros_like(counts)
    if host_slots is not None:
        nothing = [ids[:0] for ids in stream.experts[asked:]]
        below = MissStream(counts, stream.experts[:asked] + nothing)
        stored = replay_second_tier(below, recording.trace.experts_per_layer, host_slots)
    return Traffic(
        needed=stream.counts[:, first:],
        missed=counts[:, first:],
        stored=stored[:, first:],
        step_tokens=np.diff(recording.steps.starts)[first:],
        load_ratio=0.0,
        fit_steps=first,
        sequences=float(recording.requests[first:].mean()),
    )


def keep_layers(traffic: Traffic, resident_layers: int) -> Traffic:
    """`traffic` with exactly the last `resident_layers` on the GPU, after it was carried over."""
    asked = len(traffic.needed) - resident_layers
    missed = np.where(np.arange(len(traffic.needed))[:, None] < asked, traffic.needed, 0)
    return replace(traffic, missed=missed, stored=np.minimum(traffic.stored, missed))
