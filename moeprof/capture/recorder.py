"""The device side: fixed buffers that router hooks write, and one copy-out a step.

Nothing here waits for the device: the copy of a step runs on a stream of its own into pinned
memory, and whoever reads a `HostCopy`, the writer thread, waits for its event. A buffer grows
only between steps, and never once a CUDA graph writes it, so that its address stands still.

Which layers were recorded is read from the rows themselves, not remembered by the code that wrote
them: when a CUDA graph is replayed, no Python runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.layout import UNWRITTEN, Layout

if TYPE_CHECKING:
    import torch

MIN_CAPACITY = 64
MIN_CAPACITY_CUDA = 8192  # a graph may be captured on a small step before a large one comes


class Written(NamedTuple):
    """What a router hook has for its tokens. n rows, k experts."""

    experts: torch.Tensor  # [n, k]
    weights: torch.Tensor | None = None  # [n, k]
    margins: torch.Tensor | None = None  # [n]
    next_experts: torch.Tensor | None = None  # [n, k]
    next_weights: torch.Tensor | None = None  # [n, k]


class HostCopy:
    """A tensor in host memory whose copy may still be under way."""

    def __init__(self, tensor: torch.Tensor, done: torch.cuda.Event | None = None) -> None:
        self._tensor = tensor
        self._done = done
        self.nbytes: int = int(tensor.numel()) * int(tensor.element_size())

    def array(self) -> NDArray[Any]:
        """The values; waits for the copy."""
        if self._done is not None:
            self._done.synchronize()
        return np.asarray(self._tensor.numpy())


def copy_to_host(source: torch.Tensor) -> HostCopy:
    """Start copying `source` on the current stream; later writes to `source` do no harm.

    On CUDA the copy is asynchronous. Other accelerators have no pinned copies: it is immediate.
    """
    import torch

    source = source.detach()
    if source.device.type != "cuda":
        # numpy is called without a lock around it, and makes no autograd history
        return HostCopy(source.to("cpu", copy=True))
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    target.copy_(source.contiguous(), non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # the writer thread sleeps until then
    done.record(torch.cuda.current_stream(source.device))
    return HostCopy(target, done)


@dataclass(frozen=True)
class Part:
    """The rows of one device, on their way to the host."""

    slots: tuple[int, ...]  # which of the recorded layers it holds, in order
    layout: Layout
    copy: HostCopy


@dataclass(frozen=True)
class Routing:
    """What the routers of one step returned. T tokens with padding, L layers, k experts."""

    parts: tuple[Part, ...]
    nbytes: int

    @cached_property
    def _arrays(self) -> list[dict[str, NDArray[Any]]]:
        return [part.layout.arrays(part.copy.array()) for part in self.parts]

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """[T] vocabulary ids; meaningless where the step came as embeddings."""
        ids: NDArray[np.int32] = self._arrays[0]["token_id"][:, 0]
        return ids

    @cached_property
    def recorded(self) -> NDArray[np.bool_]:
        """[L] whether a layer's router gave exactly one row a token."""
        return np.asarray((self["experts"][:, :, 0] != UNWRITTEN).all(axis=0))

    def __contains__(self, field: str) -> bool:
        return field in self._arrays[0]

    def __getitem__(self, field: str) -> NDArray[Any]:
        """[T, L, ...] of `field`, meaningless in layers that are not `recorded`.

        Layers that live on several devices are put side by side in order of their slots.
        """
        if len(self.parts) == 1:
            return self._arrays[0][field]
        order = np.argsort([slot for part in self.parts for slot in part.slots])
        joined = np.concatenate([arrays[field] for arrays in self._arrays], axis=1)
        return np.asarray(joined[:, order])


class DeviceBuffer:
    """Rows for the layers that live on one device."""

    def __init__(self, device: torch.device, slots: Sequence[int], layout: Layout) -> None:
        import torch

        self.device = device
        self.slots = tuple(slots)
        self.layout = replace(layout, layers=len(slots))
        self.frozen = False  # a CUDA graph writes these addresses
        self.capacity = 0
        self._rows: torch.Tensor | None = None
        self._token_id: torch.Tensor | None = None
        self._columns: list[Written] = []  # views of the rows, one a layer
        self._is_cuda = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if self._is_cuda else None
        self._copied: torch.cuda.Event | None = None

    def reserve(self, tokens: int) -> bool:
        """Make room for a step of `tokens` and clear it, after the copy of the last one is done.

        False if there is no room and none can be made.
        """
        import torch

        if self._copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied)
        if tokens > self.capacity:
            if self.frozen:
                return False
            self._allocate(tokens)
        assert self._rows is not None
        self._rows[:tokens].fill_(UNWRITTEN)
        return True

    def write_token_ids(self, ids: torch.Tensor) -> None:
        """Vocabulary ids of the step's tokens, of any shape."""
        if self._token_id is not None:
            flat = ids.reshape(-1)
            self._token_id[: flat.shape[0]].copy_(flat, non_blocking=True)

    def write(self, column: int, start: int, written: Written) -> None:
        """Rows from `start` of one layer: a copy kernel a field, and nothing else."""
        stop = start + written.experts.shape[0]
        views = self._columns[column]
        for view, values in zip(views, written, strict=True):
            if view is not None and values is not None:
                view[start:stop].copy_(values.detach(), non_blocking=True)

    def spoil(self, column: int) -> None:
        """This layer gave more rows than the step has tokens: it is not recorded."""
        self._columns[column].experts[0].fill_(UNWRITTEN)

    def copy_out(self, tokens: int) -> Part:
        """Start the copy of the first `tokens` rows to the host."""
        import torch

        if self._rows is None:
            raise RuntimeError("copy_out before reserve")
        if self._side is None:
            return Part(self.slots, self.layout, copy_to_host(self._rows[:tokens]))
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            self._rows.record_stream(self._side)  # the copy may outlive this buffer
            copy = copy_to_host(self._rows[:tokens])
            self._copied = torch.cuda.Event()
            self._copied.record(self._side)
        return Part(self.slots, self.layout, copy)

    def _allocate(self, tokens: int) -> None:
        import torch

        floor = MIN_CAPACITY_CUDA if self._is_cuda else MIN_CAPACITY
        self.capacity = max(floor, 1 << (tokens - 1).bit_length())
        # A tensor made in inference mode could not be written outside of it later.
        with torch.inference_mode(False):
            shape = (self.capacity, self.layout.width)
            self._rows = torch.empty(shape, dtype=torch.int16, device=self.device)
            views = self.layout.tensors(self._rows)
            self._token_id = views["token_id"][:, 0]
            fields = [views[name].unbind(1) if name in views else None for name in Written._fields]
            self._columns = [
                Written(*[column[layer] if column else None for column in fields])
                for layer in range(self.layout.layers)
            ]


class RoutingRecorder:
    """Collects one step at a time: `begin`, a `write` from every router, then `end`.

    A layer's slot is its ordinal among the recorded layers. Layers may live on several devices
    (a device map); each has its buffer, and a layer seen elsewhere than expected moves to the
    buffer of that device before the next step.

    Writing needs no open step, so that a CUDA graph can be captured outside of one: its replays
    then write what `begin` cleared and `end` copies.
    """

    def __init__(self, devices: Sequence[torch.device], layout: Layout) -> None:
        self.layout = layout
        self._devices = list(devices)  # by slot
        self._moved = True
        self._buffers: list[DeviceBuffer] = []
        self._home: list[tuple[DeviceBuffer, int]] = []  # by slot: buffer, column in it
        self._none = [0] * len(devices)
        self._rows = self._none[:]  # by slot: rows written in this step, by Python
        self._tokens: int | None = None
        self._on_cuda = any(device.type == "cuda" for device in devices)

    @property
    def active(self) -> bool:
        """Whether a step is open."""
        return self._tokens is not None

    @property
    def any_written(self) -> bool:
        """Whether a router has written in this step, as far as Python has seen."""
        return self._rows != self._none

    @property
    def capturing(self) -> bool:
        """Whether what runs now is not run but captured into a CUDA graph."""
        import torch

        return self._on_cuda and torch.cuda.is_current_stream_capturing()

    @property
    def frozen(self) -> bool:
        """Whether a CUDA graph writes here: then steps come without Python seeing a router."""
        return any(buffer.frozen for buffer in self._buffers)

    def begin(self, tokens: int, token_ids: torch.Tensor | None = None) -> bool:
        """Open a step of `tokens` rows, padding included; the only place that allocates.

        False if a buffer that a CUDA graph writes is too small for it: no step is open then.
        """
        if self._moved:
            self._assign_homes()
        self._rows[:] = self._none
        self._tokens = None
        for buffer in self._buffers:
            if not buffer.reserve(tokens):
                return False
        if token_ids is not None:
            self._buffers[0].write_token_ids(token_ids)
        self._tokens = tokens
        return True

    def write_token_ids(self, ids: torch.Tensor) -> None:
        """Vocabulary ids of the open step, where they are known only at its end."""
        self._buffers[0].write_token_ids(ids)

    def write(self, slot: int, written: Written) -> None:
        """The next rows that the router of `slot` returned in this step."""
        buffer, column = self._home[slot]
        start = self._rows[slot]
        rows = written.experts.shape[0]
        limit = buffer.capacity if self._tokens is None else self._tokens
        buffer.frozen |= self.capturing
        self._rows[slot] = start + rows
        if start + rows > limit:
            buffer.spoil(column)
        else:
            buffer.write(column, start, written)
        if written.experts.device != buffer.device:
            self._devices[slot] = written.experts.device
            self._moved = True

    def prepare_capture(self) -> None:
        """Writes that follow are captured into a CUDA graph: rows count from the first again."""
        if self._moved:
            self._assign_homes()
        self._rows[:] = self._none
        for buffer in self._buffers:
            if not buffer.capacity:
                buffer.reserve(1)
            buffer.frozen = True

    def end(self) -> Routing:
        """Close the step and start its copy to the host."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            raise RuntimeError("end before begin")
        parts = tuple(buffer.copy_out(tokens) for buffer in self._buffers)
        return Routing(parts, sum(part.copy.nbytes for part in parts))

    def abandon(self) -> None:
        """Close the step and keep nothing of it."""
        self._tokens = None

    def _assign_homes(self) -> None:
        homes: dict[torch.device, list[int]] = {}
        for slot, device in enumerate(self._devices):
            homes.setdefault(device, []).append(slot)
        self._buffers = [
            DeviceBuffer(device, slots, self.layout) for device, slots in homes.items()
        ]
        placed = {s: (b, column) for b in self._buffers for column, s in enumerate(b.slots)}
        self._home = [placed[slot] for slot in range(len(self._devices))]
        self._moved = False
