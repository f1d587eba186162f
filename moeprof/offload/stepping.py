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
_MOST_CODES = 1_000_000


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
    own seconds of a step bound it. Where they do, the link alone is on the critical path.
    """
    kinds, event = _kinds(traffic)
    times = _timed(kinds, work, speeds, service)
    left = np.maximum(kinds[1] * traffic.load_ratio - times.copied, 0)
    per_event = np.concatenate([times.shares, [times.copied, left]])
    summed = _by_step(per_event, event)
    shares, copied, behind = summed[:-2], summed[-2], summed[-1]
    gpu, overhead = step_seconds(work, speeds, traffic.step_tokens)
    shares[RESOURCES.index("gpu")] += gpu
    shares[RESOURCES.index("overhead")] += overhead
    if service.serve is not Serve.COPY:
        link = (copied + behind) * copy_seconds(work, speeds, service.apart)
        binds = link > shares.sum(axis=0)
        shares[:, binds] = 0.0
        shares[_LINK, binds] = link[binds]
    return StepTimes(
        shares.sum(axis=1), shares.sum(axis=0), round(copied.sum()), float(behind.sum())
    )


def _by_step(values: NDArray[np.float64], event: NDArray[np.int64]) -> NDArray[np.float64]:
    """[rows, steps] sums over layers of `values` [rows, kinds], given each event's kind.

    Kinds are counted for every step, so that no value is fetched for every event.
    """
    kinds, steps = values.shape[1], event.shape[1]
    summed = np.empty((len(values), steps))
    width = max(1, _MOST_CODES // kinds)
    for start in range(0, steps, width):
        block = event[:, start : start + width]
        place = block + kinds * np.arange(block.shape[1])
        counts = np.bincount(place.ravel(), minlength=kinds * block.shape[1])
        summed[:, start : start + width] = values @ counts.reshape(-1, kinds).T
    return summed


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
    counts = (traffic.needed, traffic.missed, traffic.stored, traffic.step_tokens)
    bases = [int(count.max(initial=0)) + 1 for count in counts]
    code = np.zeros_like(traffic.needed)
    for count, base in zip(counts, bases, strict=True):
        code = code * base + count
    if np.prod(bases, dtype=float) > _MOST_CODES:  # a table of all codes would be too large
        found, event = np.unique(code, return_inverse=True)
    else:
        seen = np.bincount(code.ravel()) > 0
        found, event = np.flatnonzero(seen), (np.cumsum(seen) - 1)[code]
    return np.stack(np.unravel_index(found, bases)), event.reshape(code.shape)
