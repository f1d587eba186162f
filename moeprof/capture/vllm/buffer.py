"""The device side: one buffer at a fixed address that routers write in the graph.

It is made once, for the engine's largest step, before vLLM compiles or captures anything. The
copy of a step runs on a stream of its own into pinned memory; nobody waits for it but the writer
thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeprof.capture.layout import UNWRITTEN, Layout
from moeprof.capture.routing import Part, Routing, copy_to_host

if TYPE_CHECKING:
    import torch

ROW_MULTIPLE = 512  # sequence parallelism and graphs pad steps beyond the largest


class StepBuffer:
    """Rows of L layers and k experts for up to `tokens` tokens a step."""

    def __init__(self, device: torch.device, tokens: int, layers: int, top_k: int) -> None:
        import torch

        self.layout = Layout(layers, top_k, positions=True)
        self.capacity = -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE
        # A tensor made in inference mode could not be written outside of it later.
        with torch.inference_mode(False):
            self.rows = torch.full(
                (self.capacity, self.layout.width), UNWRITTEN, dtype=torch.int16, device=device
            )
            self._position, self._token_id = map(self._words32, ("position", "token_id"))
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        """What it takes on the device."""
        return int(self.rows.nbytes)

    def words(self, slot: int) -> slice:
        """Where the ids of a layer stand in a row."""
        start = self.layout.fields["experts"].start + slot * self.layout.top_k
        return slice(start, start + self.layout.top_k)

    def clear(self, tokens: int) -> None:
        """Forget the rows of a step, once they have been copied: what is then there is new."""
        import torch

        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)
        self.rows[:tokens].fill_(UNWRITTEN)

    def take(self, tokens: int, positions: torch.Tensor, token_ids: torch.Tensor | None) -> Routing:
        """Start the copy of a step's rows, with their positions [T] and token ids [T]."""
        import torch

        rows = self.rows[:tokens]
        self._position[:tokens].copy_(positions, non_blocking=True)
        if token_ids is not None:
            self._token_id[:tokens].copy_(token_ids, non_blocking=True)
        if self._side is None:
            return Routing((self._part(rows),))
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            part = self._part(rows)
            self._copied = torch.cuda.Event()
            self._copied.record(self._side)
        return Routing((part,))

    def _words32(self, name: str) -> torch.Tensor:
        """[capacity] a field of one 32-bit word; the view is made once."""
        import torch

        field = self.layout.fields[name]
        return self.rows[:, field.start : field.start + field.words].view(torch.int32)[:, 0]

    def _part(self, rows: torch.Tensor) -> Part:
        return Part(tuple(range(self.layout.layers)), self.layout, copy_to_host(rows))
