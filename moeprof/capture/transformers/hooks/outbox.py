"""What leaves the model's thread: steps for the writer thread, or at least their number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from moeprof.capture.drain import ITEM_BYTES, Drain
from moeprof.capture.failure import logger
from moeprof.capture.routing import Routing, copy_if_any
from moeprof.capture.sink import BEHIND
from moeprof.capture.transformers.traffic.handler import NO_ROUTER
from moeprof.capture.transformers.traffic.step import Batch, Lost, PackedStep, Step

if TYPE_CHECKING:
    import torch

FORWARD_RAISED = "the forward raised"
OUTSIDE = "routed outside a forward of the recorded model"
PACKED = "several sequences packed in one row"
TOO_LARGE = "the step is larger than the buffer that a CUDA graph writes"

WARNINGS = {
    NO_ROUTER: (
        "no router spoke during a forward. A model that was compiled before recording began never "
        "calls our hooks: start recording first, or call torch.compiler.reset() before it"
    ),
}


class Outbox:
    """Offers to the queue, which refuses what would take it beyond its bound, and never waits."""

    def __init__(self, drain: Drain, max_pending_bytes: int) -> None:
        self._drain = drain
        # Routing leaves this much of the bound to metadata, so that what is dropped is counted.
        self._reserve = max_pending_bytes // 8
        self._unsent: Counter[str] = Counter()
        self._unsent_batches: dict[int, Batch] = {}
        self._warned: set[str] = set()

    @property
    def unsent_drops(self) -> int:
        """Tokens dropped that the writer thread has not been told of yet."""
        return sum(self._unsent.values())

    def put(self, item: Any) -> None:
        """Something small that must arrive."""
        self._drain.offer(item)

    def submit(
        self,
        step: Step | PackedStep,
        routing: Routing | None,
        reason: str,
        token_ids: torch.Tensor | None,
    ) -> None:
        """Queue the step with its routing; without, if that is too much; or only its number.

        `reason` is why there is no routing, `token_ids` what it would have held.
        """
        in_order = self.send_lost()
        if routing is not None:
            step.routing = routing
            nbytes = ITEM_BYTES + step.nbytes
            if in_order and self._drain.offer(step, nbytes, reserve=self._reserve):
                return
            reason = BEHIND
            self.warn_once(BEHIND)
        step.routing, step.drop_reason = None, reason
        if isinstance(step, Step):
            step.token_ids = copy_if_any(token_ids)  # they tell which rows are done
        if not in_order or not self._drain.offer(step, ITEM_BYTES + step.nbytes):
            if isinstance(step, Step):
                self._unsent_batches[step.batch.first_request] = step.batch
            self.lose(step.tokens, reason)

    def lose(self, tokens: int, reason: str) -> None:
        """Count tokens of which nothing else is kept."""
        if tokens:
            self._unsent[reason] += tokens
            if reason in (OUTSIDE, PACKED):
                self.warn_once(reason)

    def send_lost(self, nbytes: int = ITEM_BYTES) -> bool:
        """Tell the writer thread of what was lost, before any later step. False if it must wait."""
        batches = tuple(self._unsent_batches.values())
        for reason, tokens in list(self._unsent.items()):
            if not self._drain.offer(Lost(tokens, reason, batches), nbytes):
                return False
            del self._unsent[reason]
        self._unsent_batches.clear()
        return True

    def warn_once(self, reason: str) -> None:
        """Say why tokens are not being recorded, the first time."""
        if reason not in self._warned:
            self._warned.add(reason)
            why = WARNINGS.get(reason, reason)
            logger.warning("tokens are not being recorded: %s; they are counted as dropped", why)
