"""What a user holds while a model is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.capture.failure import FailureLatch
from moeprof.errors import InputError
from moeprof.trace import Phase


@dataclass
class Counts:
    """Tokens of traffic. Everything seen is in exactly one of these."""

    by_phase: Counter[Phase] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    sampled_out: int = 0
    rotated: int = 0

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
        self._label = labels if isinstance(labels, str) else None
        self._labels = () if labels is None or isinstance(labels, str) else tuple(labels)
        self._counts = counts
        self._latch = latch
        self._unsent_drops: Callable[[], int] = lambda: 0

    @property
    def label(self) -> str | None:
        """The label of requests that start from now on. Raises InputError for what is no text."""
        return self._label

    @label.setter
    def label(self, label: str | None) -> None:
        check_labels([label])
        self._label = label

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
    def sampled_out(self) -> int:
        """Tokens of requests that the sampler left out; these are not dropped."""
        return self._counts.sampled_out

    @property
    def rotated(self) -> int:
        """Tokens that were recorded and let go to make room; known when recording has ended."""
        return self._counts.rotated

    @property
    def ended(self) -> bool:
        """Whether its time is over: what the model does from then on is not counted either."""
        return self._latch.ended

    @property
    def error(self) -> str | None:
        """Why recording stopped before its end, None if it did not."""
        return self._latch.message

    def count_unsent(self, unsent_drops: Callable[[], int]) -> None:
        """Add to `dropped` what its writer thread has not been told of yet."""
        self._unsent_drops = unsent_drops

    def labels_of(self, first_request: int, rows: int) -> tuple[str | None, ...]:
        """The labels of the next `rows` requests."""
        if self._label is not None:
            return (self._label,) * rows
        known = self._labels[first_request : first_request + rows]
        return known + (None,) * (rows - len(known))


def check_labels(labels: str | Sequence[str | None] | None) -> None:
    """Raises InputError unless `labels` is a text, a sequence of texts and None, or None."""
    single = labels is None or isinstance(labels, str)
    if not single and not isinstance(labels, Sequence):
        raise InputError(f"labels must be a text or a list of texts, not {labels!r}")
    for label in [labels] if single else labels or ():
        if label is None:
            continue
        if not isinstance(label, str) or any("\ud800" <= char <= "\udfff" for char in label):
            raise InputError(f"a label must be a text, not {label!r}")
