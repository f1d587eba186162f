"""One deployment under any number of requests: what it takes is worked out once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.model import weight_bytes
from moeprof.projection.advice.option import Option, make_option
from moeprof.projection.advice.targets import LatencyTargets
from moeprof.projection.closed_loop import Traffic, closed_loop
from moeprof.projection.deployment import Deployment
from moeprof.projection.holding import deployment_ledger
from moeprof.projection.laws import Laws, familiarity
from moeprof.projection.memory import MemoryLedger
from moeprof.projection.speed import project_speed
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.loads import ExpertLoads
from moeprof.projection.step.model import StepModel, step_model

# The most requests at a time of the served runs that the laws were fitted on.
MOST_REQUESTS = 512


@dataclass(frozen=True)
class Candidate:
    """A deployment that may be advised for requests of the lengths in `traffic`."""

    deployment: Deployment
    traffic: Traffic
    targets: LatencyTargets
    laws: Laws
    loads: ExpertLoads | None = field(default=None, hash=False)
    context: int | None = None  # of the longest request

    @cached_property
    def most_requests(self) -> int:
        """That the targets allow, however much memory they take; 0 where even one waits too long.

        By bisection: more requests at a time never make any of them faster.
        """
        low, high = 1, MOST_REQUESTS
        if self.miss(low) > 1:
            return 0
        if self.miss(high) <= 1:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.miss(middle) <= 1 else (low, middle)
        return low

    def tokens_per_s(self, requests: int) -> float:
        """Output tokens of `requests` at a time that all fit: more requests, more tokens."""
        token, first = self._seconds(requests)
        output = self.traffic.output_len
        return requests * output / (first + (output - 1) * token)

    def option(self) -> Option | None:
        """With the most requests that memory and targets allow; None where that is none."""
        if not self.most_requests or not self.may_fit:
            return None
        requests = min(self.most_requests, self.max_concurrency)
        return self._fitting_option(requests) if requests else None

    def nearest(self) -> tuple[float, Option] | None:
        """(how far it misses, the option with one request); None where that does not fit."""
        if not self.may_fit or not self.max_concurrency:
            return None
        option = self._fitting_option(1)
        return None if option is None else (self.miss(1), option)

    def miss(self, requests: int) -> float:
        """`LatencyTargets.miss` with `requests` at a time that all fit."""
        token, first = self._seconds(requests)
        return self.targets.miss(1e3 * token * self._worst[0], 1e3 * first * self._worst[1])

    def _seconds(self, requests: int) -> tuple[float, float]:
        """(a token, the first one)."""
        loop = closed_loop(self._model, self._at(requests), None)
        return loop.tpot_s, float(loop.ttft_amounts @ self._first_constants)

    @cached_property
    def may_fit(self) -> bool:
        """False where the weights alone outgrow all cards together, which needs no ledger."""
        sizes = weight_bytes(self.deployment.model, self.deployment.precision)
        cluster = self.deployment.cluster
        return sum(sizes.values()) <= cluster.gpus * cluster.profile.memory_visible.value

    @cached_property
    def max_concurrency(self) -> int:
        """Requests that fit at their full length."""
        most = self.ledger.max_sequences if self.ledger.free_bytes >= 0 else 0
        return (most or 0) * self.deployment.parallelism.dp

    @cached_property
    def ledger(self) -> MemoryLedger:
        """With one request."""
        return deployment_ledger(self.deployment, self._at(1))

    def _fitting_option(self, requests: int) -> Option | None:
        """Whole requests round up in each group, so the ledger has the last word."""
        for count in range(requests, 0, -1):
            traffic = self._at(count)
            ledger = deployment_ledger(self.deployment, traffic)
            if ledger.fits:
                break
        else:
            return None
        return make_option(
            self.deployment,
            traffic,
            project_speed(self.deployment, traffic, laws=self.laws, loads=self.loads),
            self.targets,
            max_concurrency=self.max_concurrency,
            limit=self._limit(count),
            free_bytes=ledger.free_bytes,
            context=self.context,
        )

    def _limit(self, requests: int) -> str:
        if requests >= MOST_REQUESTS:
            return "requests"
        if requests >= self.max_concurrency:
            return "memory"
        patient = replace(self, targets=replace(self.targets, ttft_ms=None))
        return "tpot" if patient.miss(requests + 1) > 1 else "ttft"

    def _at(self, requests: int) -> Traffic:
        return replace(self.traffic, concurrency=requests)

    @cached_property
    def _groups(self) -> dict[str, str]:
        return groups_of(self.deployment)

    @cached_property
    def _model(self) -> StepModel:
        return step_model(self.deployment, self.laws.step, self._groups, self.loads)

    @cached_property
    def _first_constants(self) -> NDArray[np.float64]:
        return self.laws.first_token.constants(self._groups)

    @cached_property
    def _worst(self) -> tuple[float, float]:
        """Factors on the two times: the upper ends of their bands where the targets ask for it."""
        if not self.targets.sure:
            return 1.0, 1.0
        near = familiarity(self.laws, self._groups)
        high = [max(1.0, self.laws.bands[what][near].high) for what in ("tpot", "ttft")]
        return high[0], high[1]
