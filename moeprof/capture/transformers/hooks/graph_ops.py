"""Operators that compiled code calls where eager code runs our hooks.

Python that a hook runs would break a graph, or be baked into it. An operator is opaque to
`torch.compile`: the graph holds the call, and the call does what the hook does. Captured into a
CUDA graph, `route` leaves its copy kernels there; `begin` and `end` run Python at every step, so
they are marked as what no CUDA graph may hold.

Every operator names `anchor`, a tensor of one element, as changed: that keeps them all, in order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moeprof.capture.recorder import Written
from moeprof.capture.transformers.requests.forward import Forward

if TYPE_CHECKING:
    import torch

    from moeprof.capture.transformers.hooks.session import CaptureSession

SCHEMAS = {
    "begin": (
        "(Tensor(a!) anchor, int tap, SymInt rows, SymInt columns, SymInt past, bool cached, "
        "Tensor? input_ids, Tensor? mask, Tensor? positions) -> ()"
    ),
    "route": (
        "(Tensor(a!) anchor, int tap, int slot, Tensor experts, Tensor? weights, Tensor? margins, "
        "Tensor? next_experts, Tensor? next_weights) -> ()"
    ),
    "end": "(Tensor(a!) anchor, int tap) -> ()",
}

_next_tap = itertools.count(1)
_sessions: dict[int, CaptureSession] = {}  # by tap: what the operators of one model speak to


def new_tap() -> int:
    """A number that stands for one model in compiled code, for as long as that code lives."""
    return next(_next_tap)


def connect(tap: int, session: CaptureSession) -> None:
    """Operators of `tap` now speak to `session`."""
    _sessions[tap] = session


def disconnect(tap: int) -> None:
    """Operators of `tap` now do nothing."""
    _sessions.pop(tap, None)


@functools.cache
def register() -> Any:
    """Define the operators, once a process; returns what keeps them defined."""
    from torch import library as torch_library

    operators = torch_library.Library("moeprof", "FRAGMENT")
    for name, implementation in (("begin", _begin), ("route", _route), ("end", _end)):
        tags = () if name == "route" else tuple(_unsafe_in_cuda_graphs())
        operators.define(name + SCHEMAS[name], tags=tags)
        operators.impl(name, implementation, "CompositeExplicitAutograd")
        torch_library.register_fake(f"moeprof::{name}", _nothing, lib=operators)
    return operators


def make_claims() -> Callable[[int, int], bool]:
    """`claim(slot, site)`, for use while tracing: does `site` speak for its layer?

    The first that could does. It is answered once, when the graph is made, and leaves no guard.
    """
    import torch

    claims: dict[int, int] = {}

    def claim(slot: int, site: int) -> bool:
        return claims.setdefault(slot, site) == site

    constant: Callable[[int, int], bool] = torch._dynamo.assume_constant_result(claim)
    return constant


class TracedCache:
    """Stands for the cache object of a compiled forward, which an operator cannot be given."""

    def __init__(self) -> None:
        self.columns: int | None = 0

    def get_seq_length(self) -> int:
        """Columns in the cache. Raises ValueError where only the device knows."""
        if self.columns is None:
            raise ValueError("the length of a static cache")
        return self.columns


_caches: dict[int, TracedCache] = {}


def _begin(
    anchor: torch.Tensor,
    tap: int,
    rows: int,
    columns: int,
    past: int,
    cached: bool,
    input_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> None:
    session = _sessions.get(tap)
    if session is None or session.captured():
        return
    cache = None
    if cached:
        if columns > 1 or tap not in _caches:
            _caches[tap] = TracedCache()  # what is not one token a row starts a sequence
        cache = _caches[tap]
        cache.columns = past if past >= 0 else 0 if columns > 1 else None
    session.begin_traced(Forward(rows, columns, anchor.device, input_ids, mask, positions, cache))


def _route(
    anchor: torch.Tensor,
    tap: int,
    slot: int,
    experts: torch.Tensor,
    weights: torch.Tensor | None,
    margins: torch.Tensor | None,
    next_experts: torch.Tensor | None,
    next_weights: torch.Tensor | None,
) -> None:
    session = _sessions.get(tap)
    if session is None:
        return
    try:
        session.route(slot, Written(experts, weights, margins, next_experts, next_weights))
    except Exception as error:
        session.fail(error, "recording a router")


def _end(anchor: torch.Tensor, tap: int) -> None:
    session = _sessions.get(tap)
    if session is not None and not session.bounded:
        session.end(None)


def _nothing(*_: Any) -> None:
    """What the operators compute, as far as a compiler is concerned."""


def _unsafe_in_cuda_graphs() -> list[Any]:
    import torch

    tag = getattr(torch.Tag, "cudagraph_unsafe", None)  # since torch 2.8
    return [] if tag is None else [tag]
