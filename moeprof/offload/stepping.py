"""From the counts of every event to seconds of every step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.offload.rates import Speeds
from moeprof.offload.timing import RESOURCES, LayerTimes, Serve, step_seconds, time_layers
from moeprof.offload.traffic import Traffic
from moeprof.offload.work import DecodeWork

_LINK = RESOURCES.index("link")


class Service(NamedTuple):
    """How misses are served: the options of `time_layers`."""

    serve: Serve = Serve.AUTO
    overlap: bool = True
    apart: bool = False


class StepTimes(NamedTuple):
    """Seconds of all judged steps together, by resource, and what moved."""

    shares: NDArray[np.float64]  # [resources] seconds on the critical path
    seconds: NDArray[np.float64]  # [steps]
    copied: int  # experts over the link before they were computed
    loaded_behind: float  # experts over the link after the CPU computed them


def time_steps(traffic: Traffic, work: DecodeWork, speeds: Speeds, service: Service) -> StepTimes:
    """Seconds of every step of `traffic`.

    Events with the same counts take the same time, so each kind is timed once. An expert that the
    CPU computed and the cache admits crosses the link behind, beside what follows: only the link's
    own seconds of a step bound it.
    """
    kinds, event = _kinds(traffic)
    times = time_layers(
        kinds[0],
        kinds[1],
        work,
        speeds,
        drive_misses=kinds[2],
        serve=service.serve,
        overlap=service.overlap,
        apart=service.apart,
    )
    outside, overhead = step_seconds(work, speeds)
    steps = event.shape[1]
    shares = np.zeros((len(RESOURCES), steps))
    link, behind = np.zeros(steps), np.zeros(steps)
    one_copy = _copy_seconds(work, speeds, service)
    left = np.maximum(kinds[1] * traffic.load_ratio - times.copied, 0)
    for layer in event:
        shares += times.shares[:, layer]
        behind += left[layer]
        link += (times.copied + left)[layer] * one_copy
    shares[RESOURCES.index("gpu")] += outside
    shares[RESOURCES.index("overhead")] += overhead
    if service.serve is not Serve.COPY:
        shares[_LINK] += np.maximum(link - shares.sum(axis=0), 0)
    return StepTimes(
        shares.sum(axis=1),
        shares.sum(axis=0),
        int(sum(times.copied[layer].sum() for layer in event)),
        float(behind.sum()),
    )


def time_events(
    traffic: Traffic, work: DecodeWork, speeds: Speeds, service: Service, steps: int
) -> LayerTimes:
    """The events of the first `steps` one by one, [layers, steps]."""
    return time_layers(
        traffic.needed[:, :steps],
        traffic.missed[:, :steps],
        work,
        speeds,
        drive_misses=traffic.stored[:, :steps],
        serve=service.serve,
        overlap=service.overlap,
        apart=service.apart,
    )


def _kinds(traffic: Traffic) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(needed, missed, stored) of every kind of event [3, kinds], and the kind of each event."""
    base = int(traffic.needed.max(initial=0)) + 1
    code = (traffic.needed * base + traffic.missed) * base + traffic.stored
    found, event = np.unique(code, return_inverse=True)
    kinds = np.stack([found // base**2, found // base % base, found % base])
    return kinds, event.reshape(code.shape)


def _copy_seconds(work: DecodeWork, speeds: Speeds, service: Service) -> float:
    parts = work.matrices if service.apart else 1
    return work.expert_bytes / speeds.link + parts * speeds.copy_latency_s
