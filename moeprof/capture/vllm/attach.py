"""Attaching to vLLM's workers, once each is made.

Patched are two methods of vLLM's classes: the worker's wrapper, so that a worker is met as soon as
it has a model runner, and the worker base, which gets `moeprof_control` for `collective_rpc`.
Everything else is replaced on the one object at hand.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from moeprof.capture.failure import logger
from moeprof.capture.vllm.buffer import StepBuffer
from moeprof.capture.vllm.rank_recording import Subject
from moeprof.capture.vllm.ranks import Rank
from moeprof.capture.vllm.routers import find_sites, tap_routers
from moeprof.capture.vllm.row_layout import follow_forward
from moeprof.capture.vllm.worker import WorkerRecorder
from moeprof.errors import InputError

RECORDER = "moeprof_recorder"  # attribute of a worker
CONTROL = "moeprof_control"


def follow_workers() -> None:
    """Meet every worker that is made in this process from now on. May be called again."""
    from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

    if hasattr(WorkerBase, CONTROL):
        return
    setattr(WorkerBase, CONTROL, _control)
    init_device = WorkerWrapperBase.init_device

    @wraps(init_device)
    def meet(wrapper: Any) -> None:
        init_device(wrapper)
        _guarded(lambda: attach(wrapper.worker))

    WorkerWrapperBase.init_device = meet


def _control(worker: Any, action: str, options: Any = None) -> dict[str, Any]:
    """What `collective_rpc` calls. Never raises."""
    recorder = getattr(worker, RECORDER, None)
    if recorder is None:
        return {"error": "moeprof could not attach to this worker", "writes": True}
    answer: dict[str, Any] = recorder.control(action, options)
    return answer


def attach(worker: Any) -> None:
    """Record what `worker` runs, once it is asked to."""
    recorder = WorkerRecorder()
    setattr(worker, RECORDER, recorder)
    runner = worker.model_runner
    load, shutdown = worker.load_model, worker.shutdown

    def load_model(*args: Any, **kwargs: Any) -> Any:
        _guarded(lambda: _before_loading(worker))
        loaded = load(*args, **kwargs)
        _guarded(lambda: _prepare(worker, recorder))
        return loaded

    def end() -> Any:
        recorder.close()
        return shutdown()

    worker.load_model, worker.shutdown = load_model, end
    _wrap_forwards(runner, recorder)


def _guarded(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # whatever has changed in there
        logger.error("nothing is recorded: %s: %s; the server goes on", type(error).__name__, error)


def _wrap_forwards(runner: Any, recorder: WorkerRecorder) -> None:
    execute = runner.execute_model
    second_version = "dummy_run" in inspect.signature(execute).parameters

    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        dummy = bool(kwargs.get("dummy_run", len(args) > 1 and args[1]))
        recorder.before(scheduled, dummy)
        output = execute(scheduled, *args, **kwargs)
        if not dummy:
            recorder.after(runner, scheduled)
        return output

    runner.execute_model = execute_model
    if second_version:  # its dummy runs come through execute_model
        return
    dummy_run = runner._dummy_run

    def run_dummy(*args: Any, **kwargs: Any) -> Any:
        recorder.before(None, True)
        return dummy_run(*args, **kwargs)

    runner._dummy_run = run_dummy


def _before_loading(worker: Any) -> None:
    """On a CPU routers are part of the compiled graph, and with them the buffer they write.

    A graph that vLLM has stored as machine code would write the buffer of another process.
    """
    if worker.device_config.device_type == "cpu":
        os.environ["VLLM_USE_AOT_COMPILE"] = "0"


def _prepare(worker: Any, recorder: WorkerRecorder) -> None:
    """The model is loaded and neither compiled nor captured: tap its routers."""
    try:
        rank = rank_of(worker.vllm_config)
        refuse_unrecordable(worker.vllm_config, rank)
        _tap(worker, recorder, rank)
    except InputError as error:
        recorder.refuse(str(error))
        logger.warning("this server cannot be recorded: %s", error)
    except Exception as error:
        recorder.refuse(f"{type(error).__name__}: {error}")
        raise
    recorder.start_from_environment()


def _tap(worker: Any, recorder: WorkerRecorder, rank: Rank) -> None:
    import vllm

    from moeprof.capture.transformers.record import describe_config

    config, runner = worker.vllm_config, worker.model_runner
    model = describe_config(config.model_config.hf_config)
    sites = find_sites(runner.get_model(), model.layers)
    if not sites and rank.pp_size == 1:
        raise InputError("the model has no MoE layer whose router hands out its ids")
    buffer = None
    if sites and rank.writes:
        tokens = config.scheduler_config.max_num_batched_tokens
        buffer = StepBuffer(runner.device, tokens, len(sites), model.top_k)
        split = rank.dp_size > 1 or rank.sequence_parallel
        take_over = tap_routers(sites, buffer, follow_forward(rank) if split else None)
        _repeat_after_binding(runner, take_over)
    subject = Subject(
        rank=rank,
        model=model,
        layers=list(sites),
        engine_version=vllm.__version__,
        speculative=config.speculative_config is not None,
    )
    recorder.provide(subject, buffer)


def _repeat_after_binding(runner: Any, take_over: Callable[[], None]) -> None:
    """vLLM binds its own capture when it makes the cache, still before any graph is captured."""
    initialize = runner.initialize_kv_cache

    def initialize_kv_cache(*args: Any, **kwargs: Any) -> Any:
        made = initialize(*args, **kwargs)
        _guarded(take_over)
        return made

    runner.initialize_kv_cache = initialize_kv_cache


def rank_of(config: Any) -> Rank:
    """The place of this process, whose groups vLLM has made."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    parallel = config.parallel_config
    return Rank(
        dp=parallel.data_parallel_rank,
        pp=get_pp_group().rank_in_group,
        tp=get_tp_group().rank_in_group,
        dp_size=parallel.data_parallel_size,
        pp_size=parallel.pipeline_parallel_size,
        tp_size=parallel.tensor_parallel_size,
        sequence_parallel=bool(getattr(parallel, "use_sequence_parallel_moe", False)),
    )


def refuse_unrecordable(config: Any, rank: Rank) -> None:
    """Raises InputError where rows could not be told apart: wrong ones are worse than none."""
    parallel = config.parallel_config
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        raise InputError(
            "dual-batch overlap runs a step in parts whose rows are not told apart: "
            "start without --enable-dbo"
        )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise InputError(
            "prefill context parallelism spreads a request's tokens over ranks: "
            "start without --prefill-context-parallel-size"
        )
    if getattr(config.cache_config, "kv_sharing_fast_prefill", False):
        raise InputError(
            "with fast prefill the last layers see a part of the tokens: "
            "start without --kv-sharing-fast-prefill"
        )
    split = rank.dp_size > 1 or rank.sequence_parallel
    compiled = int(config.compilation_config.mode or 0) != 0
    if split and compiled and config.device_config.device_type == "cpu":
        raise InputError(
            "on a CPU the compiled graph cannot tell the rows of data parallel ranks apart: "
            "start with --enforce-eager"
        )
