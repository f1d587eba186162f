"""The host side: what the routers of a step returned, on its way from the device and there."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeprof.capture.layout import UNWRITTEN, Layout

if TYPE_CHECKING:
    import torch


CAPTURE_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED of CUDA's driver API

_threads = threading.local()


class HostCopy:
    """An array in host memory whose copy may still be under way."""

    def __init__(
        self, tensor: torch.Tensor | NDArray[Any], done: torch.cuda.Event | None = None
    ) -> None:
        self._tensor = tensor
        self._done = done
        self.nbytes = int(tensor.nbytes)

    def array(self) -> NDArray[Any]:
        """The values; waits for the copy."""
        if self._done is not None:
            _stand_clear_of_captures()
            self._done.synchronize()
        tensor = self._tensor
        return tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor.numpy())


def _stand_clear_of_captures() -> None:
    """Let this thread wait for events while another captures a CUDA graph.

    By default a wait makes such a capture fail, as `torch.cuda.graph` starts it: it forbids all
    threads what may be unsafe. Waiting for copies made outside of the capture is not.
    """
    if getattr(_threads, "relaxed", False):
        return
    _threads.relaxed = True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # ROCm, Windows
        return
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(CAPTURE_RELAXED)))


def copy_to_host(source: torch.Tensor) -> HostCopy:
    """Start copying `source` on the current stream; later writes to `source` do no harm.

    On CUDA the copy is asynchronous. Other accelerators have no pinned copies: it is immediate.
    """
    import torch

    source = source.detach()
    if source.device.type != "cuda":
        return HostCopy(source.to("cpu", copy=True))
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    target.copy_(source, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # the writer thread sleeps until then
    done.record(torch.cuda.current_stream(source.device))
    return HostCopy(target, done)


def copy_if_any(source: torch.Tensor | None) -> HostCopy | None:
    """`copy_to_host` of what may not be there."""
    return None if source is None else copy_to_host(source)


@dataclass(frozen=True)
class Part:
    """The rows of one device."""

    slots: tuple[int, ...]  # which of the recorded layers it holds, in order
    layout: Layout
    copy: HostCopy  # [T, width]


@dataclass(frozen=True)
class Routing:
    """What the routers of one step, or of several of one size, returned.

    T tokens with padding, L layers, k experts.
    """

    parts: tuple[Part, ...]
    steps: int = 1

    @cached_property
    def nbytes(self) -> int:
        """Size of the rows."""
        return sum(part.copy.nbytes for part in self.parts)

    @classmethod
    def join(cls, routings: Sequence[Routing]) -> Routing:
        """Steps one after the other. ValueError unless they lie on the same devices."""
        parts = []
        for same in zip(*(routing.parts for routing in routings), strict=True):
            rows = np.concatenate([part.copy.array() for part in same])
            parts.append(replace(same[0], copy=HostCopy(rows)))
        return cls(tuple(parts), len(routings))

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
        """[T, L] whether a layer's router gave exactly one row a token, in the whole step."""
        written: NDArray[np.bool_] = np.asarray(self["experts"][:, :, 0] != UNWRITTEN)
        tokens, layers = written.shape
        if not tokens:
            return written
        whole = written.reshape(self.steps, -1, layers).all(axis=1)
        return np.asarray(np.repeat(whole, tokens // self.steps, axis=0))

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
