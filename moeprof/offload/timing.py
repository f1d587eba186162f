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
LANES = ("gpu", "link", "cpu", "drive", "copied experts")


class Serve(StrEnum):
    """How a missing expert is served."""

    COPY = "copy"  # over the link, then computed on the GPU
    CPU = "cpu"  # computed by the CPU, where it stands
    AUTO = "auto"  # of each event as many copied as make it shortest


class Service(NamedTuple):
    """How misses are served. `overlap` lets the four lanes run side by side; `apart` copies the
    matrices of an expert one by one, each with its own latency.
    """

    serve: Serve = Serve.COPY
    overlap: bool = True
    apart: bool = False


class LayerTimes(NamedTuple):
    """Of every event, in the shape of the counts.

    `shares` are seconds that the resources on the critical path take, [resources, ...]; they sum
    to `seconds`. `lanes` are the seconds that each lane is at work, [lanes, ...], side by side.
    """

    seconds: Seconds
    shares: Seconds
    lanes: Seconds
    copied: NDArray[np.int64]  # experts that went over the link before they were computed


class _Events(NamedTuple):
    needed: NDArray[np.int64]
    missed: NDArray[np.int64]
    stored: NDArray[np.int64]
    tokens: NDArray[np.int64]


def time_layers(
    experts: ArrayLike,
    misses: ArrayLike,
    work: DecodeWork,
    speeds: Speeds,
    *,
    drive_misses: ArrayLike = 0,
    tokens: ArrayLike = 1,
    serve: Serve | str = Serve.COPY,
    overlap: bool = True,
    apart: bool = False,
) -> LayerTimes:
    """Seconds of events that need `experts` distinct experts and miss `misses` of them.

    `drive_misses` of the misses are not in host memory either, and the step has `tokens` tokens,
    which are spread evenly over its experts. See `Service` for the options. The counts broadcast.
    Raises InputError where they contradict each other or a rate is missing.
    """
    service = Service(parse_serve(serve), overlap, apart)
    counts = (experts, misses, drive_misses, tokens)
    events = _Events(*np.broadcast_arrays(*(np.asarray(count, np.int64) for count in counts)))
    _check(events, speeds, service.serve)
    if service.serve is Serve.AUTO:
        return _shortest(events, work, speeds, service)
    copied = events.missed if service.serve is Serve.COPY else np.zeros_like(events.missed)
    return _timed(events, copied, work, speeds, service)


def parse_serve(name: Serve | str) -> Serve:
    """Raises InputError for an unknown way to serve."""
    try:
        return Serve(name)
    except ValueError:
        raise InputError(f"serve '{name}' is not one of {', '.join(Serve)}") from None


def step_seconds(work: DecodeWork, speeds: Speeds, tokens: ArrayLike = 1) -> tuple[Seconds, float]:
    """(GPU, overhead) seconds of steps of `tokens` outside of the events: weights and KV or
    arithmetic, whichever takes longer; and launches.
    """
    reading = (work.dense_bytes + work.kv_bytes) / speeds.hbm
    counted = np.asarray(tokens, np.float64)
    gpu: Seconds = np.maximum(reading, counted * _arithmetic(work.dense_flop, speeds))
    return gpu, speeds.step_s + work.layers * speeds.layer_s


def copy_seconds(work: DecodeWork, speeds: Speeds, apart: bool = False) -> float:
    """Of one expert over the link."""
    parts = work.matrices if apart else 1
    return work.expert_bytes / speeds.link + parts * speeds.copy_latency_s


def _shortest(events: _Events, work: DecodeWork, speeds: Speeds, service: Service) -> LayerTimes:
    """The split of each event between copies and the CPU that ends first; of equals, few copies."""
    best = _timed(events, np.zeros_like(events.missed), work, speeds, service)
    for copies in range(1, int(events.missed.max(initial=0)) + 1):
        times = _timed(events, np.minimum(events.missed, copies), work, speeds, service)
        better = times.seconds < best.seconds
        best = LayerTimes(
            *(np.where(better, new, old) for new, old in zip(times, best, strict=True))
        )
    return best


def _timed(
    events: _Events,
    copied: NDArray[np.int64],
    work: DecodeWork,
    speeds: Speeds,
    service: Service,
) -> LayerTimes:
    """The law, with `copied` of the misses over the link and the others on the CPU."""
    one_copy = copy_seconds(work, speeds, service.apart)
    held, arrived = _gpu_seconds(events, copied, work, speeds)
    link = copied * one_copy
    cpu = _cpu_seconds(events.missed - copied, copied, work.expert_bytes, speeds)
    drive = _drive_seconds(events.stored, work, speeds)
    lanes = np.stack([held, link, cpu, drive, arrived])
    zero = np.zeros_like(link)
    launches = zero + speeds.kernel_s
    if not service.overlap:
        shares = np.stack([held + arrived, link, cpu, drive, launches])
        return LayerTimes(shares.sum(axis=0), shares, lanes, copied)
    # What comes from a drive still has the last expert's way before it.
    last = np.where(
        copied > 0, one_copy, 0 if speeds.cpu is None else work.expert_bytes / speeds.cpu
    )
    drive = np.where(events.stored > 0, drive + last, 0)
    gpu_side = np.stack([held, link, zero, np.where(copied > 0, drive, 0)])
    cpu_side = np.stack([zero, zero, cpu, np.where(copied > 0, 0, drive)])
    to_gpu, to_cpu = gpu_side.max(axis=0) + arrived, cpu_side.max(axis=0)
    by_gpu = _first_of(gpu_side)
    by_gpu[0] += arrived
    shares = np.where(to_gpu >= to_cpu, by_gpu, _first_of(cpu_side))
    shares = np.concatenate([shares, [launches]])
    return LayerTimes(shares.sum(axis=0), shares, lanes, copied)


def _first_of(lanes: Seconds) -> Seconds:
    """`lanes` [lanes, ...] with all but the longest set to nothing."""
    longest = lanes.argmax(axis=0)
    return np.where(np.arange(len(lanes)).reshape(-1, *[1] * longest.ndim) == longest, lanes, 0)


def _gpu_seconds(
    events: _Events, copied: NDArray[np.int64], work: DecodeWork, speeds: Speeds
) -> tuple[Seconds, Seconds]:
    """(shared expert and experts on the GPU, copied experts): bytes or arithmetic, the longer."""
    here, each = events.needed - events.missed, work.expert_bytes
    assigned = events.tokens * work.top_k * _arithmetic(work.expert_flop, speeds)
    routed = assigned / np.maximum(events.needed, 1)
    shared = events.tokens * _arithmetic(work.shared_flop, speeds)
    held = np.maximum((work.shared_bytes + here * each) / speeds.hbm, shared + here * routed)
    arrived = copied.astype(np.float64) * np.maximum(each / speeds.hbm, routed)
    return held, arrived


def _arithmetic(flop: float, speeds: Speeds) -> float:
    return 0.0 if speeds.flops is None else flop / speeds.flops


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


def _check(events: _Events, speeds: Speeds, serve: Serve) -> None:
    missed, stored = events.missed, events.stored
    if (missed < 0).any() or (missed > events.needed).any():
        raise InputError("misses: at least 0 and at most the experts of the event are possible")
    if (stored < 0).any() or (stored > missed).any():
        raise InputError("drive_misses: at least 0 and at most the misses are possible")
    if serve is not Serve.COPY and speeds.cpu is None and missed.any():
        raise InputError(f"serve '{serve}' needs a host: name one behind the GPU, +epyc-9005")
    if speeds.drive is None and stored.any():
        raise InputError("drive_misses need a drive: name one behind the GPU, +nvme-gen4")
