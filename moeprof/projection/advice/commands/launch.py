"""What a command line is written from, and what comes of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moeprof.projection.advice.checkpoints import checkpoint_of, draft_checkpoint
from moeprof.projection.advice.engine_facts import flag_source
from moeprof.projection.closed_loop import Traffic
from moeprof.projection.deployment import Deployment
from moeprof.projection.memory import engine_memory
from moeprof.result import Result


@dataclass(frozen=True)
class LaunchCommand(Result):
    """A line for the shell; `files` maps names that it mentions to their text, `sources` its flags
    to the pages that document them."""

    command: str
    files: Mapping[str, str] = field(hash=False, default_factory=dict)
    sources: Mapping[str, str] = field(hash=False, default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """A deployment under a load, as engines are told of it."""

    deployment: Deployment
    traffic: Traffic
    host_layers: int = 0
    gpu_experts: int | None = None
    longest: int | None = None

    @property
    def checkpoint(self) -> str:
        """Hub id, or a folder."""
        return checkpoint_of(self.deployment.model, self.deployment.precision)

    @property
    def draft(self) -> str | None:
        """Hub id of the draft model."""
        return draft_checkpoint(self.deployment.held.draft)

    @property
    def context(self) -> int:
        """Tokens of the longest request."""
        return self.longest or self.traffic.input_len + self.traffic.output_len

    @property
    def requests(self) -> int:
        """That each data-parallel group runs at a time."""
        return -(-self.traffic.concurrency // self.deployment.parallelism.dp)

    @property
    def expert_parallel(self) -> bool:
        """Whether experts go whole to ranks."""
        return self.deployment.parallelism.ep > 1

    @property
    def utilization(self) -> float | None:
        """The share of the card that was counted on."""
        stated = self.deployment.held.utilization
        if stated is not None:
            return stated
        card = self.deployment.cluster.profile.memory_visible.value
        return engine_memory(self.deployment.engine, card).utilization

    def write(
        self,
        start: Sequence[str],
        flags: Mapping[str, object],
        files: Mapping[str, str] | None = None,
    ) -> LaunchCommand:
        """`start`, then every flag whose value is not None or False; True is a flag alone."""
        engine, words = self.deployment.engine, list(start)
        given = {name: value for name, value in flags.items() if value not in (None, False)}
        for name, value in given.items():
            words += [name] if value is True else [name, str(value)]
        sources = {name: flag_source(engine, name) for name in given}
        return LaunchCommand(shlex.join(words), files or {}, sources)
