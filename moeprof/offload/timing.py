"""The law: seconds of every MoE layer of every step from its misses. docs/offload.md states it.

A layer's event is known when its router has decided. Then four lanes run side by side: the GPU
computes the shared expert and the experts it holds, the link copies missing ones, the CPU computes
the others of them where they stand, drives read what host memory lacks; the copied experts are
computed once they are there. Without overlap all of it runs one after the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moeprof.errors import InputError
from moeprof.offload.rates import Speeds
from moeprof.offload.work import DecodeWork

Seconds = NDArray[np.float64]
RESOURCES = ("gpu", "link", "cpu", "drive", "overhead")


class Serve(StrEnum):
    """How a missing expert is served."""

    COPY = "copy"  # over the link, then computed on the GPU
    CPU = "cpu"  # computed by the CPU, where it stands
    AUTO = "auto"  # of each event as many copied as make it shortest


class LayerTimes(NamedTuple):
    """Of every event, in the shape of the counts. `shares` are seconds that the resources on the
    critical path take, [resources, ...]; they sum to `seconds`.
    """

    seconds: Seconds
    shares: Seconds
    copied: NDArray[np.int64]  # experts that went over the link before they were computed


def time_layers(
    experts: ArrayLike,
    misses: ArrayLike,
    work: DecodeWork,
    speeds: Speeds,
    *,
    drive_misses: ArrayLike = 0,
    serve: Serve | str = Serve.COPY,
    overlap: bool = True,
    apart: bool = False,
) -> LayerTimes:
    """Seconds of events that need `experts` distinct experts and miss `misses` of them.

    `drive_misses` of the misses are not in host memory either. `apart` copies an expert's matrices
    one by one, each with its own latency. The three counts broadcast. Raises InputError where
    counts contradict each other or a rate is missing.
    """
    serve = parse_serve(serve)
    needed, missed, stored = np.broadcast_arrays(
        *(np.asarray(counts, np.int64) for counts in (experts, misses, drive_misses))
    )
    _check(needed, missed, stored, speeds, serve)
    if serve is Serve.AUTO:
        return _shortest(needed, missed, stored, work, speeds, overlap, apart)
    copied = missed if serve is Serve.COPY else np.zeros_like(missed)
    return _timed(needed, missed, stored, copied, work, speeds, overlap, apart)


def parse_serve(name: Serve | str) -> Serve:
    """Raises InputError for an unknown way to serve."""
    try:
        return Serve(name)
    except ValueError:
        raise InputError(f"serve '{name}' is not one of {', '.join(Serve)}") from None


def step_seconds(work: DecodeWork, speeds: Speeds) -> tuple[float, float]:
    """(GPU, overhead) seconds of a step outside of the events: weights and KV, and launches."""
    gpu = (work.dense_bytes + work.kv_bytes) / speeds.hbm
    return gpu, speeds.step_s + work.layers * speeds.layer_s


def _shortest(
    needed: NDArray[np.int64],
    missed: NDArray[np.int64],
    stored: NDArray[np.int64],
    work: DecodeWork,
    speeds: Speeds,
    overlap: bool,
    apart: bool,
) -> LayerTimes:
    """The split of each event between copies and the CPU that ends first; of equals, few copies."""
    best = None
    for copies in range(int(missed.max(initial=0)) + 1):
        copied = np.minimum(missed, copies)
        times = _timed(needed, missed, stored, copied, work, speeds, overlap, apart)
        if best is None:
            best = times
            continue
        better = times.seconds < best.seconds
        best = LayerTimes(
            *(np.where(better, new, old) for new, old in zip(times, best, strict=True))
        )
    assert best is not None
    return best


def _timed(
    needed: NDArray[np.int64],
    missed: NDArray[np.int64],
    stored: NDArray[np.int64],
    copied: NDArray[np.int64],
    work: DecodeWork,
    speeds: Speeds,
    overlap: bool,
    apart: bool,
) -> LayerTimes:
    each = work.expert_bytes
    parts = work.matrices if apart else 1
    on_cpu = missed - copied
    held = (work.shared_bytes + (needed - missed) * each) / speeds.hbm
    arrived = copied * each / speeds.hbm
    one_copy = each / speeds.link + parts * speeds.copy_latency_s
    link = copied * one_copy
    cpu = _cpu_seconds(on_cpu, copied, each, speeds)
    drive = _drive_seconds(stored, work, speeds)
    zero = np.zeros_like(link)
    if not overlap:
        lanes = np.stack([held + arrived, link, cpu, drive, zero + speeds.kernel_s])
        return LayerTimes(lanes.sum(axis=0), lanes, copied)
    # What comes from a drive still has the last expert's way before it.
    last = np.where(copied > 0, one_copy, 0 if speeds.cpu is None else each / speeds.cpu)
    drive = np.where(stored > 0, drive + last, 0)
    gpu_side = np.stack([held, link, zero, np.where(copied > 0, drive, 0)])
    cpu_side = np.stack([zero, zero, cpu, np.where(copied > 0, 0, drive)])
    to_gpu, to_cpu = gpu_side.max(axis=0) + arrived, cpu_side.max(axis=0)
    by_gpu = _first_of(gpu_side)
    by_gpu[0] += arrived
    shares = np.where(to_gpu >= to_cpu, by_gpu, _first_of(cpu_side))
    shares = np.concatenate([shares, [zero + speeds.kernel_s]])
    return LayerTimes(shares.sum(axis=0), shares, copied)


def _first_of(lanes: Seconds) -> Seconds:
    """`lanes` [lanes, ...] with all but the longest set to nothing."""
    longest = lanes.argmax(axis=0)
    return np.where(np.arange(len(lanes)).reshape(-1, *[1] * longest.ndim) == longest, lanes, 0)


def _cpu_seconds(
    on_cpu: NDArray[np.int64], copied: NDArray[np.int64], each: float, speeds: Speeds
) -> Seconds:
    """Host memory is read by the CPU and by the copies beside it."""
    if speeds.cpu is None:
        return np.zeros(on_cpu.shape)
    reading = (on_cpu + copied) * each / speeds.cpu + speeds.cpu_layer_s
    return np.where(on_cpu > 0, reading, 0.0)


def _drive_seconds(stored: NDArray[np.int64], work: DecodeWork, speeds: Speeds) -> Seconds:
    """All reads of an event are asked for at once, a queue's depth at a time."""
    if speeds.drive is None:
        return np.zeros(stored.shape)
    rounds = np.ceil(stored * work.matrices / speeds.drive_queue_depth)
    seconds: Seconds = stored * work.expert_bytes / speeds.drive + rounds * speeds.drive_latency_s
    return seconds


def _check(
    needed: NDArray[np.int64],
    missed: NDArray[np.int64],
    stored: NDArray[np.int64],
    speeds: Speeds,
    serve: Serve,
) -> None:
    if (missed < 0).any() or (missed > needed).any():
        raise InputError("misses: at least 0 and at most the experts of the event are possible")
    if (stored < 0).any() or (stored > missed).any():
        raise InputError("drive_misses: at least 0 and at most the misses are possible")
    if serve is not Serve.COPY and speeds.cpu is None and missed.any():
        raise InputError(f"serve '{serve}' needs a host: name one behind the GPU, +epyc-9005")
    if speeds.drive is None and stored.any():
        raise InputError("drive_misses need a drive: name one behind the GPU, +nvme-gen4")
