"""From the counts of every event to seconds of every step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.offload.rates import Speeds
from moeprof.offload.timing import (
    RESOURCES,
    LayerTimes,
    Serve,
    Service,
    copy_seconds,
    step_seconds,
    time_layers,
)
from moeprof.offload.traffic import Traffic
from moeprof.offload.work import DecodeWork

_LINK = RESOURCES.index("link")


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
    times = _timed(kinds, work, speeds, service)
    gpu, overhead = step_seconds(work, speeds, traffic.step_tokens)
    steps = event.shape[1]
    shares = np.zeros((len(RESOURCES), steps))
    link, behind = np.zeros(steps), np.zeros(steps)
    left = np.maximum(kinds[1] * traffic.load_ratio - times.copied, 0)
    for layer in event:
        shares += times.shares[:, layer]
        behind += left[layer]
        link += (times.copied + left)[layer]
    shares[RESOURCES.index("gpu")] += gpu
    shares[RESOURCES.index("overhead")] += overhead
    if service.serve is not Serve.COPY:
        link *= copy_seconds(work, speeds, service.apart)
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
    counts = (traffic.needed, traffic.missed, traffic.stored)
    shown = [count[:, :steps] for count in counts]
    tokens = np.broadcast_to(traffic.step_tokens[:steps], shown[0].shape)
    return _timed(np.stack([*shown, tokens]), work, speeds, service)


def _timed(
    events: NDArray[np.int64], work: DecodeWork, speeds: Speeds, service: Service
) -> LayerTimes:
    """`events` are (needed, missed, stored, tokens of the step), [4, ...]."""
    needed, missed, stored, tokens = events
    return time_layers(
        needed, missed, work, speeds, drive_misses=stored, tokens=tokens, **service._asdict()
    )


def _kinds(traffic: Traffic) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(needed, missed, stored, tokens) of every kind of event [4, kinds], and each event's kind."""
    base = int(traffic.needed.max(initial=0)) + 1
    code = (traffic.needed * base + traffic.missed) * base + traffic.stored
    most = int(traffic.step_tokens.max(initial=0)) + 1
    found, event = np.unique(code * most + traffic.step_tokens, return_inverse=True)
    code_of, tokens = np.divmod(found, most)
    kinds = np.stack([code_of // base**2, code_of // base % base, code_of % base, tokens])
    return kinds, event.reshape(code.shape)
