"""What a user holds while a model is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.capture.failure import FailureLatch
from moeprof.trace import Phase


@dataclass
class Counts:
    """Tokens of traffic. Everything seen is in `by_phase` or in `dropped`."""

    by_phase: Counter[Phase] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def recorded(self) -> int:
        """Tokens written."""
        return sum(self.by_phase.values())


class Recording:
    """Counts of a recording, good while it runs (a moment behind the model) and afterwards.

    Set `label` to name the requests that start from then on; it goes before the `labels` that
    recording began with. Those are one label for all, or one a request in order of arrival (the
    rows of a batch arrive in order); requests beyond the last have none.
    """

    def __init__(
        self,
        path: Path,
        counts: Counts,
        latch: FailureLatch,
        labels: str | Sequence[str | None] | None = None,
    ) -> None:
        self.path = path
        self.label: str | None = labels if isinstance(labels, str) else None
        self._labels = () if labels is None or isinstance(labels, str) else tuple(labels)
        self._counts = counts
        self._latch = latch
        self._unsent_drops: Callable[[], int] = lambda: 0

    @property
    def tokens(self) -> int:
        """Tokens recorded."""
        return self._counts.recorded

    @property
    def dropped(self) -> int:
        """Tokens seen and not recorded."""
        return sum(self._counts.dropped.values()) + self._unsent_drops()

    @property
    def drop_reasons(self) -> dict[str, int]:
        """Tokens seen and not recorded, by reason."""
        return dict(self._counts.dropped)

    @property
    def prefill_tokens(self) -> int:
        """Tokens recorded that belong to prompts."""
        return self._counts.by_phase[Phase.PREFILL]

    @property
    def decode_tokens(self) -> int:
        """Tokens recorded that the model had generated."""
        return self._counts.by_phase[Phase.DECODE]

    @property
    def error(self) -> str | None:
        """Why recording stopped before its end, None if it did not."""
        return self._latch.message

    def count_unsent(self, unsent_drops: Callable[[], int]) -> None:
        """Add to `dropped` what its writer thread has not been told of yet."""
        self._unsent_drops = unsent_drops

    def labels_of(self, first_request: int, rows: int) -> tuple[str | None, ...]:
        """The labels of the next `rows` requests."""
        if self.label is not None:
            return (self.label,) * rows
        known = self._labels[first_request : first_request + rows]
        return known + (None,) * (rows - len(known))
