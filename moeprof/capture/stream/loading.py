"""Parts of the model, each with its weights for as long as its turn lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from moeprof.capture.stream.parts import Part
from moeprof.capture.stream.pipeline import Pipeline
from moeprof.capture.stream.reading import fresh_bytes
from moeprof.capture.stream.skeleton import Skeleton
from moeprof.capture.transformers.run import torch_threads

if TYPE_CHECKING:
    import torch


class Loader:
    """Loads `stays`, and then every one of `turns`, which share memory, while it is entered.

    As much as `staging_bytes` of what comes next are read meanwhile.
    """

    def __init__(
        self, skeleton: Skeleton, stays: Part, turns: Sequence[Part], staging_bytes: int
    ) -> None:
        self._skeleton = skeleton
        self._parts = [stays, *turns]
        self._memory = _memory(max((part.nbytes for part in turns), default=0), skeleton.device)
        self._next = iter(self._parts)
        self._staging_bytes = staging_bytes
        self.nbytes = 0  # read of the checkpoint so far

    def __enter__(self) -> Loader:
        self._pipeline = Pipeline([part.fills for part in self._parts], self._staging_bytes)
        self._stays = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self._pipeline.close()
        self._stays.close()

    @property
    def left_bytes(self) -> int:
        """Of the parts whose turn is still to come, on disk."""
        return sum(part.stored_bytes for part in self._parts) - self.nbytes

    @property
    def rate(self) -> float:
        """Bytes a second, while any were read."""
        return self.nbytes / max(self._pipeline.busy.seconds, 1e-9)

    def load(self) -> None:
        """The part that stays until the end. InputError where the checkpoint does not hold it."""
        part = next(self._next)
        self._stays.enter_context(self._skeleton.restored(part.prefix))
        self._load(part, _memory(part.nbytes, self._skeleton.device))

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """The next part whose turn it is, for as long as the body runs."""
        part = next(self._next)
        with self._skeleton.restored(part.prefix):
            self._load(part, self._memory)
            yield

    def _load(self, part: Part, memory: torch.Tensor) -> None:
        tensors = part.views(memory)
        with torch_threads(1):  # threads that copy side by side need no more of their own
            self._pipeline.place(tensors)
            self._skeleton.load(part, tensors)
        self.nbytes += part.stored_bytes


def _memory(nbytes: int, device: torch.device) -> torch.Tensor:
    import torch

    if device.type == "cpu":
        return torch.from_numpy(fresh_bytes(nbytes))
    return torch.empty(nbytes, dtype=torch.uint8, device=device)
