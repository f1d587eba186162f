"""Recording a Hugging Face transformers model while the user's own code runs it.

    with moeprof.record(model, "run.moetrace", labels="python"):
        model.generate(**inputs)

While the context is open, one thread at a time may run the model. `interpret` says which tokens
are traffic, `requests` what is one request, `hooks` how the model is listened to.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.failure import logger
from moeprof.capture.layout import Layout
from moeprof.capture.limits import Limits
from moeprof.capture.pipeline import MAX_PENDING_BYTES, open_pipeline
from moeprof.capture.recorder import RoutingRecorder
from moeprof.capture.recording import Recording, check_labels
from moeprof.capture.transformers.hooks.attach import Tap, attach
from moeprof.capture.transformers.hooks.continuous import ContinuousBatches
from moeprof.capture.transformers.hooks.copies import keep_out_of_copies
from moeprof.capture.transformers.hooks.session import CaptureSession
from moeprof.capture.transformers.routers.finding import UNFAITHFUL, RouterSite, find_router_sites
from moeprof.capture.transformers.routers.scores import plan_extras
from moeprof.capture.transformers.traffic.handler import StepHandler
from moeprof.capture.transformers.traffic.interpret import Interpreter
from moeprof.errors import InputError, MissingExtraError, ModelError
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter

if TYPE_CHECKING:
    import torch

_being_recorded: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def record(
    model: torch.nn.Module,
    path: str | Path,
    *,
    labels: str | Sequence[str | None] | None = None,
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
    max_pending_bytes: int = MAX_PENDING_BYTES,
) -> Iterator[Recording]:
    """Record what the routers of `model` decide in every forward pass until the context ends.

    `path` becomes the trace; an existing one is replaced only with `force`. `labels`: see
    `Recording`. `weights` adds the gate weights as float16, `token_ids` the vocabulary ids,
    `margins` by how much the last chosen expert beat the first that was not, `next_layer` what the
    next layer's router would choose for this layer's hidden state (one more router a layer).
    The trace takes at most `max_bytes` of the disk: what comes then is dropped and counted, or,
    with `rotate`, takes the place of the oldest. After `duration_s` seconds the trace is closed,
    and what the model does then is not counted. `sample_requests` is the probability with which
    a request is recorded, chosen by `seed`; the rest is counted as left out, not as dropped.
    `aggregate_steps` keeps counts alone: of every window of so many steps the tokens by phase,
    layer and expert, nothing of a single token or request.
    `max_pending_bytes` bounds what waits in host memory for the disk: beyond it whole steps are
    dropped and counted, the model never waits.

    The model computes what it would without us, bit for bit, whatever happens here: an error of
    ours ends the recording, is logged once to the logger "moeprof" and stands in
    `Recording.error`; tokens seen from then on are counted as dropped.

    Raises InputError, before anything is changed, if `model` is not a MoE model that can be
    recorded, is being recorded already, or `path` cannot be used; MissingExtraError without torch.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    _check_model(model, max_pending_bytes)
    check_labels(labels)
    limits = Limits(max_bytes, rotate, duration_s, sample_requests, seed, aggregate_steps)
    described = describe_config(model.config)
    sites = find_router_sites(model, described.moe_layers, described.experts)
    if missing := sorted(set(described.moe_layers) - set(sites)):
        logger.warning("layers %s have no router that can be recorded, they are left out", missing)
    layout = Layout(
        len(sites), described.top_k, weights=weights, margins=margins, next_layer=next_layer
    )
    extras = plan_extras(sites, margins=margins, next_layer=next_layer, top_k=described.top_k)
    interpreter = Interpreter(described.experts, token_ids=token_ids)
    open_writer = partial(
        _open_writer,
        path,
        described,
        list(sites),
        layout=layout,
        token_ids=token_ids,
        force=force,
        limits=limits,
    )
    with ExitStack() as stack:
        keep_out_of_copies(stack)
        _being_recorded.add(model)
        stack.callback(_release, weakref.ref(model))
        pipeline = stack.enter_context(
            open_pipeline(
                open_writer,
                path,
                lambda sink, latch: StepHandler(sink, interpreter, latch),
                labels=labels,
                max_pending_bytes=max_pending_bytes,
                limits=limits,
            )
        )
        devices = _devices(sites, model)
        recorder = RoutingRecorder(devices, layout)
        session = CaptureSession(pipeline, recorder, max_pending_bytes)
        stack.callback(session.finish)
        ContinuousBatches(model, session, pipeline.clock_base).attach(stack)
        attach(stack, model, sites, described.top_k, session, Tap(devices), extras)
        del model, sites, extras  # who built the model may let go of it while it is recorded
        yield pipeline.recording


def _release(reference: weakref.ref[Any]) -> None:
    model = reference()
    if model is not None:
        _being_recorded.discard(model)


def describe_config(config: Any) -> MoEModel:
    """The model that a transformers configuration object describes.

    Raises InputError if it has no MoE layers.
    """
    plain = config.to_dict()
    name = Path(getattr(config, "name_or_path", "") or "").name or None
    try:
        model = MoEModel.from_config(plain, name=name)
    except ModelError:  # its tensors cannot be counted, which recording can do without
        model = MoEModel.from_config(plain, name=name, count_tensors=False)
    if not model.moe_layers:
        raise InputError(
            f"{model.name} has no MoE layers, there is nothing to record: its configuration "
            "names no routed experts"
        )
    return model


def _check_model(model: Any, max_pending_bytes: int) -> None:
    try:
        import torch
        import transformers  # noqa: F401 - the trace names its version
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "capture") from None
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise InputError(f"record takes a transformers model, not a {type(model).__name__}")
    if model in _being_recorded:
        raise InputError(f"this {type(model).__name__} is being recorded already")
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"{type(model).__name__} is an encoder-decoder; record decoder-only models"
        )
    for config in (model.config, model.config.get_text_config()):
        if config.model_type in UNFAITHFUL:
            why = UNFAITHFUL[config.model_type]
            raise InputError(f"{config.model_type} cannot be recorded: {why}")
    if not max_pending_bytes > 0:  # also refuses NaN
        raise InputError(f"max_pending_bytes is {max_pending_bytes}, it must be above 0")


def _open_writer(
    path: str | Path,
    model: MoEModel,
    layers: list[int],
    *,
    layout: Layout,
    token_ids: bool,
    force: bool,
    limits: Limits,
) -> TraceWriter:
    import transformers

    return TraceWriter(
        path,
        model,
        layers=layers,
        engine="transformers",
        engine_version=transformers.__version__,
        weights=layout.weights,
        margins=layout.margins,
        next_layer=layout.next_layer,
        token_ids=token_ids,
        force=force,
        max_bytes=limits.max_bytes,
        rotate=limits.rotate,
        sampling=limits.sampling,
        aggregate_steps=limits.aggregate_steps,
    )


def _devices(sites: dict[int, list[RouterSite]], model: torch.nn.Module) -> list[torch.device]:
    """Where each layer's ids will probably be: the device of its router's weights."""
    first = next(model.parameters()).device
    devices = []
    for layer_sites in sites.values():
        parameter = next(layer_sites[0].module.parameters(), None)
        known = parameter is not None and parameter.device.type != "meta"
        devices.append(parameter.device if known and parameter is not None else first)
    return devices
