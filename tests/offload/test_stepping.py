"""What crosses the link behind the CPU's work, and when that is what a step waits for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from moeprof.offload.rates import Speeds
from moeprof.offload.stepping import StepTimes, time_steps
from moeprof.offload.timing import RESOURCES, Serve, Service
from moeprof.offload.traffic import Traffic
from moeprof.offload.work import DecodeWork

WORK = DecodeWork(layers=1, moe_layers=1, expert_bytes=100.0)


def timed(load_ratio: float, cpu: float = 1000.0) -> StepTimes:
    """Two steps of one layer that miss three and one of four experts, all computed by the CPU."""
    missed = np.array([[3, 1]])
    traffic = Traffic(np.full((1, 2), 4), missed, 0 * missed, np.ones(2, int), load_ratio, 0, 1.0)
    speeds = Speeds(1e5, 100.0, cpu, None, 0, 0, 1, 0, 0, 0, 0.0)
    return time_steps(traffic, WORK, speeds, Service(Serve.CPU))


def test_where_the_link_binds_it_alone_is_on_the_critical_path() -> None:
    times = timed(load_ratio=1.0)
    assert_allclose(times.seconds, [3.0, 1.0])  # an expert a second
    assert_allclose(times.shares, [4.0 * (name == "link") for name in RESOURCES])
    assert_allclose(timed(1.0, cpu=1e6).seconds, times.seconds)  # a faster CPU changes nothing


@pytest.mark.parametrize("load_ratio", [0.0, 0.05])
def test_what_crosses_in_time_is_not_on_it(load_ratio: float) -> None:
    times = timed(load_ratio)
    assert_allclose(times.seconds, [0.3, 0.1])
    assert_allclose(times.shares, [0.4 * (name == "cpu") for name in RESOURCES])
