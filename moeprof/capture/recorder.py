"""The device side: fixed buffers that router hooks write, and one copy-out a step.

Nothing here waits for the device: the copy of a step runs on a stream of its own into pinned
memory, and whoever reads the copy, the writer thread, waits for its event. A buffer grows
only between steps, and never once a CUDA graph writes it, so that its address stands still.

Which layers were recorded is read from the rows themselves, not remembered by the code that wrote
them: when a CUDA graph is replayed, no Python runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from moeprof.capture.layout import UNWRITTEN, Layout
from moeprof.capture.routing import Part, Routing, copy_to_host

if TYPE_CHECKING:
    import torch

MIN_CAPACITY = 64
MIN_CAPACITY_CUDA = 8192  # a graph may be captured on a small step before a large one comes

_captured: list[torch.Tensor] = []  # CUDA graphs write here, and outlive the recording: never freed


class Written(NamedTuple):
    """What a router hook has for its tokens. n rows, k experts."""

    experts: torch.Tensor  # [n, k]
    weights: torch.Tensor | None = None  # [n, k]
    margins: torch.Tensor | None = None  # [n]
    next_experts: torch.Tensor | None = None  # [n, k]
    next_weights: torch.Tensor | None = None  # [n, k]


class DeviceBuffer:
    """Rows for the layers that live on one device."""

    def __init__(self, device: torch.device, slots: Sequence[int], layout: Layout) -> None:
        import torch

        self.device = device
        self.slots = tuple(slots)
        self.layout = replace(layout, layers=len(slots))
        self.frozen = False  # a CUDA graph writes these addresses
        self.capacity = 0
        self._with_weights = layout.weights
        self._fields = [i for i, name in enumerate(Written._fields) if name in layout.fields]
        self._rows: torch.Tensor | None = None
        self._step: _Views | None = None  # of the rows of the open step
        self._all: _Views | None = None
        self._is_cuda = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if self._is_cuda else None
        self._copied: torch.cuda.Event | None = None
        if self._is_cuda:
            self._allocate(1)  # while a graph is captured, it would be the graph's memory

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
        if self._step is None or self._step.count != tokens:
            assert self._rows is not None
            self._step = _Views.of(self._rows[:tokens], self.layout)
        self._step.rows.fill_(UNWRITTEN)
        return True

    def freeze(self) -> None:
        """A CUDA graph is captured that writes these addresses, whenever it is replayed."""
        if self.frozen:
            return
        if self._rows is None:
            self._allocate(1)
        assert self._rows is not None
        _captured.append(self._rows)
        self.frozen = True

    def write_token_ids(self, ids: torch.Tensor) -> None:
        """Vocabulary ids of the step's tokens, of any shape."""
        assert self._step is not None
        flat = ids.reshape(-1)
        self._step.token_id[: flat.shape[0]].copy_(flat, non_blocking=True)

    def write(self, column: int, start: int, written: Written) -> None:
        """Rows from `start` of one layer: a copy kernel a field, and nothing else."""
        count = written.experts.shape[0]
        whole = start == 0 and self._step is not None and count == self._step.count
        views = self._step if whole else self._all
        assert views is not None
        for field in self._fields:
            values = written[field]
            if values is not None:
                view = views.columns[field][column]
                target = view if whole else view[start : start + count]
                # Of what carries a gradient, the buffer would have to carry one as well.
                target.copy_(values.detach() if values.requires_grad else values, non_blocking=True)

    def write_step(self, column: int, experts: torch.Tensor, weights: torch.Tensor) -> bool:
        """Every row of one layer; False if these are not as many."""
        views = self._step
        if views is None:
            return False
        target = views.columns[0][column]
        if experts.shape != target.shape:
            return False
        target.copy_(experts, non_blocking=True)
        if self._with_weights:
            kept = weights.detach() if weights.requires_grad else weights
            views.columns[1][column].copy_(kept, non_blocking=True)
        return True

    def spoil(self, column: int) -> None:
        """This layer gave more rows than the step has tokens: it is not recorded."""
        assert self._all is not None
        self._all.columns[0][column][0].fill_(UNWRITTEN)

    def copy_out(self) -> Part:
        """Start the copy of the step's rows to the host."""
        import torch

        if self._step is None or self._rows is None:
            raise RuntimeError("copy_out before reserve")
        if self._side is None:
            return Part(self.slots, self.layout, copy_to_host(self._step.rows))
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            self._rows.record_stream(self._side)  # the copy may outlive this buffer
            copy = copy_to_host(self._step.rows)
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
            self._all = _Views.of(self._rows, self.layout)
            self._step = None


@dataclass(frozen=True)
class _Views:
    """Some rows of a buffer, and what stands in them. Made once: making views takes time."""

    count: int  # n
    rows: torch.Tensor  # [n, width]
    token_id: torch.Tensor  # [n]
    columns: tuple[tuple[torch.Tensor, ...], ...]  # by field of Written, by layer: [n, ...]

    @classmethod
    def of(cls, rows: torch.Tensor, layout: Layout) -> _Views:
        """Views of `rows`; writable in and outside of inference mode."""
        import torch

        with torch.inference_mode(False):
            views = layout.tensors(rows)
            columns = [views[name].unbind(1) if name in views else () for name in Written._fields]
            return cls(int(rows.shape[0]), rows, views["token_id"][:, 0], tuple(columns))


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
        self._none = [0] * len(devices)
        self._rows = self._none[:]  # by slot: rows written in this step, by Python
        self._tokens: int | None = None
        self._assign_homes()

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
        if self._on_cuda and self.capturing:
            buffer.freeze()
        self._rows[slot] = start + rows
        if start + rows > limit:
            buffer.spoil(column)
        else:
            buffer.write(column, start, written)
        if start == 0 and written.experts.device != buffer.device:
            self._devices[slot] = written.experts.device
            self._moved = True

    def write_step(self, slot: int, experts: torch.Tensor, weights: torch.Tensor) -> bool:
        """`write` of all rows of the step at once, if that is what this is: the usual case, lean.

        False if it is not, and nothing was written.
        """
        if self._rows[slot] or self._tokens is None or (self._on_cuda and self.capturing):
            return False
        buffer, column = self._home[slot]
        if experts.device != buffer.device or not buffer.write_step(column, experts, weights):
            return False
        self._rows[slot] = self._tokens
        return True

    def prepare_capture(self) -> None:
        """Writes that follow are captured into a CUDA graph: rows count from the first again."""
        self._rows[:] = self._none
        for buffer in self._buffers:
            buffer.freeze()

    def end(self) -> Routing:
        """Close the step and start its copy to the host."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            raise RuntimeError("end before begin")
        return Routing(tuple(buffer.copy_out() for buffer in self._buffers))

    def abandon(self) -> None:
        """Close the step and keep nothing of it."""
        self._tokens = None

    def _assign_homes(self) -> None:
        self._on_cuda = any(device.type == "cuda" for device in self._devices)
        homes: dict[torch.device, list[int]] = {}
        for slot, device in enumerate(self._devices):
            homes.setdefault(device, []).append(slot)
        self._buffers: list[DeviceBuffer] = [
            DeviceBuffer(device, slots, self.layout) for device, slots in homes.items()
        ]
        placed = {s: (b, column) for b in self._buffers for column, s in enumerate(b.slots)}
        # By slot: buffer, and column in it.
        self._home = [placed[slot] for slot in range(len(self._devices))]
        self._moved = False
