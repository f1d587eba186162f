"""Recording a Hugging Face transformers model while the user's own code runs it.

    with moeprof.record(model, "run.moetrace", labels="python"):
        model.generate(**inputs)

A forward hook that returns something replaces the module's output, so ours return nothing.
While the context is open, one thread at a time may run the model. `interpret` says which tokens
are traffic, `requests` what is one request.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.drain import Drain
from moeprof.capture.failure import FailureLatch, logger
from moeprof.capture.recorder import RoutingRecorder
from moeprof.capture.recording import Recording, check_labels
from moeprof.capture.telemetry import TelemetrySampler
from moeprof.capture.transformers.forward import forward_parameters
from moeprof.capture.transformers.generation import wrap_generate
from moeprof.capture.transformers.interpret import Interpreter
from moeprof.capture.transformers.routers import (
    UNFAITHFUL,
    RouterSite,
    find_router_sites,
    routing_in_arguments,
    routing_in_output,
)
from moeprof.capture.transformers.session import CaptureSession
from moeprof.capture.transformers.sink import TraceSink
from moeprof.errors import InputError, MissingExtraError, ModelError
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter
from moeprof.trace.schema import expert_dtype

if TYPE_CHECKING:
    import torch

MAX_PENDING_BYTES = 256 << 20

_being_recorded: weakref.WeakSet[Any] = weakref.WeakSet()
_being_written: set[Path] = set()


@contextmanager
def record(
    model: torch.nn.Module,
    path: str | Path,
    *,
    labels: str | Sequence[str | None] | None = None,
    weights: bool = False,
    token_ids: bool = False,
    force: bool = False,
    max_pending_bytes: int = MAX_PENDING_BYTES,
) -> Iterator[Recording]:
    """Record what the routers of `model` decide in every forward pass until the context ends.

    `path` becomes the trace; an existing one is replaced only with `force`. `labels`: see
    `Recording`. `weights` adds the gate weights as float16, `token_ids` the vocabulary ids.
    `max_pending_bytes` bounds what waits in host memory for the disk: beyond it whole steps are
    dropped and counted, the model never waits.

    The model computes what it would without us, bit for bit, whatever happens here: an error of
    ours ends the recording, is logged once to the logger "moeprof" and stands in
    `Recording.error`; tokens seen from then on are counted as dropped.

    Raises InputError, before anything is changed, if `model` is not a MoE model that can be
    recorded, is being recorded already, or `path` cannot be used; MissingExtraError without torch.
    """
    _check_model(model, max_pending_bytes)
    check_labels(labels)
    described = describe_config(model.config)
    sites = find_router_sites(model, described.moe_layers, described.experts)
    if missing := sorted(set(described.moe_layers) - set(sites)):
        logger.warning("layers %s have no router that can be recorded, they are left out", missing)
    with ExitStack() as stack:
        _being_recorded.add(model)
        stack.callback(_being_recorded.discard, model)
        _claim(stack, Path(path).absolute())
        writer = _open_writer(
            path, described, sites, weights=weights, token_ids=token_ids, force=force
        )
        latch = FailureLatch()
        dtype = expert_dtype(described.experts)
        interpreter = Interpreter(described.experts, dtype, token_ids=token_ids)
        sink = TraceSink(writer, interpreter, latch)
        stack.callback(sink.close)
        drain = Drain(sink.handle, sink.tick, max_pending_bytes)
        stack.callback(drain.close)
        sampler = TelemetrySampler(drain.offer, writer.clock_base)
        stack.callback(sampler.stop)
        sampler.start()

        recording = Recording(writer.path, sink.counts, latch, labels)
        recorder = RoutingRecorder(_devices(sites, model), described.top_k, weights=weights)
        session = CaptureSession(recorder, drain, latch, recording.labels_of, max_pending_bytes)
        recording.count_unsent(lambda: session.unsent_drops)
        stack.callback(session.finish)
        _attach(stack, model, sites, described.top_k, session)
        yield recording


def _claim(stack: ExitStack, path: Path) -> None:
    """Two recordings into one trace would delete each other's rows, `force` or not."""
    if path in _being_written:
        raise InputError(f"{path} is being recorded into already")
    _being_written.add(path)
    stack.callback(_being_written.discard, path)


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
    model_type = getattr(model.config, "model_type", "")
    if model_type in UNFAITHFUL:
        raise InputError(f"{model_type} cannot be recorded: {UNFAITHFUL[model_type]}")
    if not max_pending_bytes > 0:  # also refuses NaN
        raise InputError(f"max_pending_bytes is {max_pending_bytes}, it must be above 0")


def _open_writer(
    path: str | Path,
    model: MoEModel,
    sites: dict[int, list[RouterSite]],
    *,
    weights: bool,
    token_ids: bool,
    force: bool,
) -> TraceWriter:
    import transformers

    return TraceWriter(
        path,
        model,
        layers=list(sites),
        engine="transformers",
        engine_version=transformers.__version__,
        weights=weights,
        token_ids=token_ids,
        force=force,
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


def _attach(
    stack: ExitStack,
    model: torch.nn.Module,
    sites: dict[int, list[RouterSite]],
    top_k: int,
    session: CaptureSession,
) -> None:
    """Put the hooks in; `stack` takes them out."""
    listeners = [
        _LayerListener(slot, layer_sites, top_k, session)
        for slot, layer_sites in enumerate(sites.values())
    ]
    for listener in listeners:
        stack.callback(listener.remove)
    names = forward_parameters(model)

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        session.begin(names, args, kwargs)

    def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
        session.end(output)

    stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(model.register_forward_hook(after).remove)

    def around(generate: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return session.around_generate(model, generate, args, kwargs)

    stack.callback(wrap_generate(model, around))


class _LayerListener:
    """The hooks of one layer. The first site that gives ids is believed; the rest is removed."""

    def __init__(
        self, slot: int, sites: Sequence[RouterSite], top_k: int, session: CaptureSession
    ) -> None:
        self._slot = slot
        self._top_k = top_k
        self._session = session
        self._believed: RouterSite | None = None
        self._handles = {site.path: self._hook(site) for site in sites}

    def remove(self) -> None:
        """Take the hooks out."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _hook(self, site: RouterSite) -> Any:
        def experts_are_called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hear(site, routing_in_arguments, args, kwargs)

        def router_returned(module: Any, args: tuple[Any, ...], output: Any) -> None:
            self._hear(site, routing_in_output, output)

        if site.asks_experts:
            return site.module.register_forward_pre_hook(experts_are_called, with_kwargs=True)
        return site.module.register_forward_hook(router_returned)

    def _hear(self, site: RouterSite, read: Callable[..., Any], *values: Any) -> None:
        if self._believed is not None and self._believed is not site:
            return
        try:
            routed = read(*values, self._top_k)
            if routed is not None:
                self._believe(site)
                self._session.route(self._slot, routed)
        except Exception as error:
            self._session.fail(error, "recording a router")

    def _believe(self, site: RouterSite) -> None:
        if self._believed is site:
            return
        self._believed = site
        for path in [path for path in self._handles if path != site.path]:
            self._handles.pop(path).remove()
