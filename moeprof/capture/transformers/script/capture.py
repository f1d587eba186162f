"""`capture run`: a user's script, unchanged, with every transformers MoE model in it recorded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moeprof.capture.failure import logger
from moeprof.capture.limits import Limits
from moeprof.capture.main_script import ended_by_signals, run_script, signals_held_off
from moeprof.capture.recording import Recording
from moeprof.capture.transformers.record import record
from moeprof.capture.transformers.script.launch import (
    Launch,
    RankFolder,
    group_size,
    is_first_of_its_group,
    numbered,
)
from moeprof.capture.transformers.script.watching import ModelWatch
from moeprof.errors import InputError
from moeprof.result import Result
from moeprof.trace import Phase, open_trace
from moeprof.trace.folder import refuse_existing


@dataclass(frozen=True)
class RecordedModel(Result):
    """One trace that a script left, in tokens."""

    path: str
    model: str
    requests: int
    tokens: int
    dropped: int  # seen and not recorded
    prefill_tokens: int
    decode_tokens: int
    sampled_out: int = 0  # of requests that the sampler left out
    rotated: int = 0  # recorded, and let go to make room
    share_error: float | None = None  # standard error of an expert's load by sampling, relative


@dataclass(frozen=True)
class ScriptResult(Result):
    """What became of a script, and of the MoE models that ran in it. Tokens are of all traces."""

    exit_code: int  # of the script
    tokens: int
    dropped: int
    prefill_tokens: int
    decode_tokens: int
    traces: list[RecordedModel]
    unmerged: bool = False  # other processes of the launch go on, and will write the traces


@dataclass(frozen=True)
class Options:
    """What is recorded of every model."""

    weights: bool = False
    token_ids: bool = False
    margins: bool = False
    next_layer: bool = False
    force: bool = False
    limits: Limits = field(default_factory=Limits)


def capture_script(
    script: str | Path,
    arguments: Sequence[str],
    output: str | Path,
    *,
    weights: bool = False,
    token_ids: bool = False,
    margins: bool = False,
    next_layer: bool = False,
    force: bool = False,
    max_bytes: int | None = None,
    rotate: bool = False,
    duration_s: float | None = None,
    sample_requests: float | None = None,
    seed: int = 0,
    aggregate_steps: int | None = None,
) -> ScriptResult:
    """Run `script` as `python SCRIPT ARGS` would, and record the MoE models that run in it.

    Recording a model starts when it first runs, and ends with the script. The first goes to
    `output`, the next to the same name with -2, -3 and so on before the suffix. Options are those
    of `record`. It is made for a process that ends after it: `sys.argv`, `sys.path` and
    `__main__` stay those of the script.

    Under torchrun every process calls this. What the processes of a node recorded is merged into
    one trace by the last of them.

    Raises InputError, before the script starts, if it or `output` cannot be used.
    """
    limits = Limits(max_bytes, rotate, duration_s, sample_requests, seed, aggregate_steps)
    options = Options(weights, token_ids, margins, next_layer, force, limits)
    launch = Launch.from_environment()
    target = Path(output).absolute()  # the script may go elsewhere
    if launch is not None:
        target = launch.output(target)
    refuse_existing(target, force)
    if not Path(script).is_file():
        raise InputError(f"{script}: no such file; capture run takes a Python script")
    owner = os.getpid()
    with ended_by_signals(), ExitStack() as stack:
        rank = None if launch is None else stack.enter_context(RankFolder(target, launch))
        models = ScriptModels(stack, target, options, rank)
        code = run_script(script, arguments)
        if os.getpid() != owner:  # a process that the script forked comes here too
            return _result(code, [], unmerged=True)
        with signals_held_off():
            paths = models.finish()
            merged = None if rank is None else rank.gather(wait=code == 0, force=force)
    if rank is not None:
        paths = merged or []
    traces = [describe_recorded(path) for path in paths]
    return _result(code, traces, unmerged=rank is not None and merged is None)


class ScriptModels:
    """Records the models of a script. Its `watch` knows them as they come."""

    def __init__(
        self, stack: ExitStack, output: Path, options: Options, rank: RankFolder | None
    ) -> None:
        self._recordings = stack.enter_context(ExitStack())
        self._output = output
        self._options = options
        self._rank = rank
        self._recorded: list[Recording] = []
        self.watch = ModelWatch(stack, self._meet)

    def finish(self) -> list[Path]:
        """Close every trace and return those that hold something."""
        try:
            self._recordings.close()
        except Exception as error:
            logger.error("closing a trace failed: %s", error)
        for recording in self._recorded:
            if not recording.tokens + recording.dropped + recording.sampled_out + recording.rotated:
                shutil.rmtree(recording.path, ignore_errors=True)
        paths = [recording.path for recording in self._recorded if recording.path.exists()]
        if not paths and self._rank is None:
            ran = "no MoE model ran in it" if self.watch.saw_models else "no model ran in it"
            logger.warning("nothing was recorded: %s that transformers built", ran)
        return paths

    def _meet(self, model: Any) -> bool:
        """Whether `model` is recorded from now on."""
        if not names_experts(model.config):
            return False
        if not is_first_of_its_group(model):
            logger.info("%s: the first rank of its group records it", type(model).__name__)
            return True
        path = self._path(len(self._recorded) + 1)
        options, limits = self._options, self._limits(model)
        try:
            context = record(
                model,
                path,
                weights=options.weights,
                token_ids=options.token_ids,
                margins=options.margins,
                next_layer=options.next_layer,
                force=options.force,
                max_bytes=limits.max_bytes,
                rotate=limits.rotate,
                duration_s=limits.duration_s,
                sample_requests=limits.sample_requests,
                seed=limits.seed,
                aggregate_steps=limits.aggregate_steps,
            )
            self._recorded.append(self._recordings.enter_context(context))
        except InputError as error:
            logger.warning("%s is not recorded: %s", type(model).__name__, error)
            return False
        logger.info("recording %s to %s", type(model).__name__, path)
        return True

    def _limits(self, model: Any) -> Limits:
        """Those of this process: its part of the size, and a seed for its own requests."""
        limits = self._options.limits
        if self._rank is None:
            return limits
        launch, size = self._rank.launch, limits.max_bytes
        if size is not None:
            size //= max(1, launch.local_world // group_size(model))
        return replace(limits, max_bytes=size, seed=(limits.seed + launch.rank) % 2**63)

    def _path(self, number: int) -> Path:
        if self._rank is not None:
            return self._rank.part(number)
        return numbered(self._output, number)


def names_experts(config: Any) -> bool:
    """Whether a transformers configuration, or one inside of it, gives a number of experts."""
    return _names_experts(config.to_dict())


def _names_experts(config: dict[str, Any]) -> bool:
    return any(
        ("expert" in str(key) and isinstance(value, int) and value > 1)
        or (isinstance(value, dict) and _names_experts(value))
        for key, value in config.items()
    )


def describe_recorded(path: Path) -> RecordedModel:
    """What the trace at `path` holds."""
    trace = open_trace(path)
    manifest = trace.manifest
    return RecordedModel(
        path=str(path),
        model=trace.model.name,
        requests=len(trace.requests),
        tokens=trace.tokens,
        dropped=sum(trace.dropped.values()),
        prefill_tokens=trace.tokens_by_phase.get(Phase.PREFILL, 0),
        decode_tokens=trace.tokens_by_phase.get(Phase.DECODE, 0),
        sampled_out=manifest.tokens_sampled_out,
        rotated=manifest.rotated_tokens,
    )


def _result(code: int, traces: list[RecordedModel], *, unmerged: bool) -> ScriptResult:
    return ScriptResult(
        exit_code=code,
        tokens=sum(trace.tokens for trace in traces),
        dropped=sum(trace.dropped for trace in traces),
        prefill_tokens=sum(trace.prefill_tokens for trace in traces),
        decode_tokens=sum(trace.decode_tokens for trace in traces),
        traces=traces,
        unmerged=unmerged,
    )
