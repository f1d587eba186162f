"""The device side: fixed buffers that router hooks write, and one copy-out a step.

Nothing here waits for the device: the copy of a step runs on a stream of its own into pinned
memory, and whoever reads a `HostCopy`, the writer thread, waits for its event. Buffers grow only
between steps, so that within a step their addresses stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


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

    source = source.detach().contiguous()
    if source.device.type != "cuda":
        return HostCopy(source.to("cpu", copy=True))
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    target.copy_(source, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # the writer thread sleeps until then
    done.record(torch.cuda.current_stream(source.device))
    return HostCopy(target, done)


@dataclass(frozen=True)
class Routing:
    """What the routers of one step returned. T tokens with padding, L layers, k experts."""

    parts: tuple[tuple[tuple[int, ...], HostCopy, HostCopy | None], ...]
    recorded: tuple[bool, ...]  # [L] False where a layer did not give one row a token
    nbytes: int

    def experts(self) -> NDArray[np.int16]:
        """[T, L, k] expert ids; meaningless in layers that are not `recorded`."""
        return self._join([(slots, ids) for slots, ids, _ in self.parts])

    def weights(self) -> NDArray[np.float16] | None:
        """[T, L, k] gate weights, None if they were not asked for."""
        pairs = [(slots, weights) for slots, _, weights in self.parts if weights is not None]
        return self._join(pairs) if pairs else None

    def _join(self, parts: Sequence[tuple[tuple[int, ...], HostCopy]]) -> NDArray[Any]:
        """Layers that live on several devices, side by side in order of their slots."""
        if len(parts) == 1:
            return parts[0][1].array()
        order = np.argsort([slot for slots, _ in parts for slot in slots])
        joined: NDArray[Any] = np.concatenate([copy.array() for _, copy in parts], axis=1)
        return joined[:, order]


class DeviceBuffer:
    """`[capacity, layers, k]` expert ids, and gate weights if asked for, on one device."""

    def __init__(
        self, device: torch.device, slots: Sequence[int], top_k: int, *, weights: bool
    ) -> None:
        import torch

        self.device = device
        self.slots = tuple(slots)
        self._top_k = top_k
        self._with_weights = weights
        self._capacity = 0
        self._ids: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        self._id_columns: tuple[torch.Tensor, ...] = ()  # views of them, a layer each
        self._weight_columns: tuple[torch.Tensor, ...] = ()
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None

    def reserve(self, tokens: int) -> None:
        """Make room for a step of `tokens`; its writes come after the copy of the last one."""
        import torch

        if self._copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied)
        if tokens <= self._capacity:
            return
        self._capacity = 1 << max(tokens - 1, 63).bit_length()
        shape = (self._capacity, len(self.slots), self._top_k)
        # A tensor made in inference mode could not be written outside of it later.
        with torch.inference_mode(False):
            self._ids = torch.zeros(shape, dtype=torch.int16, device=self.device)
            if self._with_weights:
                self._weights = torch.zeros(shape, dtype=torch.float16, device=self.device)
                self._weight_columns = self._weights.unbind(1)
            self._id_columns = self._ids.unbind(1)

    def write(
        self, column: int, start: int, ids: torch.Tensor, weights: torch.Tensor | None
    ) -> None:
        """Rows from `start` of one layer: a copy kernel, and nothing else."""
        stop = start + ids.shape[0]
        if stop > self._capacity:
            return  # more rows than the step has tokens: it will not count as recorded
        self._id_columns[column][start:stop].copy_(ids, non_blocking=True)
        if self._weight_columns and weights is not None:
            self._weight_columns[column][start:stop].copy_(weights.detach(), non_blocking=True)

    def copy_out(self, tokens: int) -> tuple[HostCopy, HostCopy | None]:
        """Start the copy of the first `tokens` rows to the host."""
        import torch

        if self._ids is None:
            raise RuntimeError("copy_out before reserve")
        weights = self._weights
        if self._side is None:
            kept = None if weights is None else copy_to_host(weights[:tokens])
            return copy_to_host(self._ids[:tokens]), kept
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            for source in (self._ids, weights):
                if source is not None:  # the copy may outlive this buffer
                    source.record_stream(self._side)
            ids = copy_to_host(self._ids[:tokens])
            kept = None if weights is None else copy_to_host(weights[:tokens])
            self._copied = torch.cuda.Event()
            self._copied.record(self._side)
        return ids, kept


class RoutingRecorder:
    """Collects one step at a time: `begin`, a `write` from every router, then `end`.

    A layer's slot is its ordinal among the recorded layers. Layers may live on several devices
    (a device map); each has its buffer, and a layer seen elsewhere than expected moves to the
    buffer of that device before the next step.
    """

    def __init__(self, devices: Sequence[torch.device], top_k: int, *, weights: bool) -> None:
        self._devices = list(devices)  # by slot
        self._top_k = top_k
        self._with_weights = weights
        self._moved = True
        self._buffers: list[DeviceBuffer] = []
        self._home: list[tuple[DeviceBuffer, int]] = []  # by slot: buffer, column in it
        self._rows = [0] * len(devices)  # by slot: rows written in this step
        self._tokens: int | None = None

    @property
    def active(self) -> bool:
        """Whether a step is open."""
        return self._tokens is not None

    @property
    def any_written(self) -> bool:
        """Whether a router has written in this step."""
        return any(self._rows)

    def begin(self, tokens: int) -> None:
        """Open a step of `tokens` rows, padding included. The only place that allocates."""
        if self._moved:
            self._assign_homes()
        for buffer in self._buffers:
            buffer.reserve(tokens)
        self._rows = [0] * len(self._devices)
        self._tokens = tokens

    def write(self, slot: int, ids: torch.Tensor, weights: torch.Tensor | None) -> None:
        """The next rows, `[rows, k]`, that the router of `slot` returned in this step."""
        buffer, column = self._home[slot]
        buffer.write(column, self._rows[slot], ids, weights)
        self._rows[slot] += int(ids.shape[0])
        if ids.device != buffer.device:
            self._devices[slot] = ids.device
            self._moved = True

    def end(self) -> Routing:
        """Close the step and start its copy to the host."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            raise RuntimeError("end before begin")
        copies = [(buffer.slots, *buffer.copy_out(tokens)) for buffer in self._buffers]
        nbytes = sum(ids.nbytes + (w.nbytes if w else 0) for _, ids, w in copies)
        return Routing(tuple(copies), tuple(rows == tokens for rows in self._rows), nbytes)

    def abandon(self) -> None:
        """Close the step and keep nothing of it."""
        self._tokens = None

    def _assign_homes(self) -> None:
        homes: dict[torch.device, list[int]] = {}
        for slot, device in enumerate(self._devices):
            homes.setdefault(device, []).append(slot)
        self._buffers = [
            DeviceBuffer(device, slots, self._top_k, weights=self._with_weights)
            for device, slots in homes.items()
        ]
        placed = {s: (b, column) for b in self._buffers for column, s in enumerate(b.slots)}
        self._home = [placed[slot] for slot in range(len(self._devices))]
        self._moved = False
