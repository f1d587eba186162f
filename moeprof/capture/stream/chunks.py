"""How much of a text passes through a layer at once, so that memory suffices."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from moeprof.capture.stream.activations import Activations
from moeprof.capture.stream.caching import layer_cache
from moeprof.capture.stream.needs import Needs, gib, resident_bytes
from moeprof.capture.stream.opening import OpenedModel
from moeprof.capture.stream.sequences import TokenSequence, micro_batches

SIZES = tuple(16 << power for power in range(9))  # tokens of a chunk, 16 to 4096
KEPT_BYTES = 32 << 20  # of holes: the C library gives no smaller blocks back at once
COUNTED = 0.75  # of the rest; kernels take some inside


@dataclass(frozen=True)
class Piece:
    """Columns `start` to `stop` of the sequences of these `numbers`, all of one length."""

    numbers: Sequence[int]
    start: int
    stop: int

    def __len__(self) -> int:
        """Columns."""
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        """Of all its sequences."""
        return len(self.numbers) * len(self)


@dataclass(frozen=True)
class Chunks:
    """By layer, tokens that run at once where a text does not fit whole; none if all texts do."""

    needs: Needs
    longest: int  # tokens of the longest text
    text_bytes: int  # that it takes
    by_layer: dict[int, int] = field(default_factory=dict)

    def batches(self, layer: int, sequences: Sequence[TokenSequence]) -> Iterator[list[Piece]]:
        """The micro-batches of a layer, each in the pieces that run one after the other."""
        for numbers in micro_batches(sequences, self.needs.rows_that_fit):
            length = len(sequences[numbers[0]])
            whole = not self.by_layer or self.needs.fits(length)
            step = length if whole else self.by_layer[layer]
            starts = range(0, length, step)
            yield [Piece(numbers, start, min(start + step, length)) for start in starts]

    def describe(self, disk_bytes: int) -> str:
        """What the run takes, in a sentence."""
        needed = self.needs.needed_bytes(self.text_bytes)
        told = (
            f"takes {gib(needed)} of memory at least, of {gib(self.needs.budget_bytes)}, and "
            f"{gib(disk_bytes)} of disk beside the trace"
        )
        if not self.by_layer:
            return told
        fewest = min(self.by_layer.values())
        return f"{told}; {self.longest:,} tokens go through a layer {fewest:,} at a time or more"


def plan_chunks(needs: Needs, longest: int, opened: OpenedModel, expert_bytes: int) -> Chunks:
    """So that the longest text, of so many tokens, stays in the budget. Raises InfeasibleError.

    As many tokens at once as fit: every pass goes over all keys of the text before it.
    """
    whole_bytes = needs.sequence_bytes(longest)
    if needs.fits(longest):
        return Chunks(needs, longest, whole_bytes)
    if needs.room_bytes <= 0:
        raise needs.too_small(longest, longest, whole_bytes)
    activations = Activations(opened, expert_bytes)
    with suppress(Exception):  # that it cannot be counted comes up again
        activations.nbytes(0, longest, 1)
    if needs.process_bytes:  # counting takes memory too, and keeps it
        needs = replace(needs, process_bytes=max(needs.process_bytes, resident_bytes()))
    found = [_chunk(needs, longest, activations, n, opened) for n in range(opened.places.last + 1)]
    most = max(nbytes for _, nbytes in found)
    return Chunks(needs, longest, most, {layer: size for layer, (size, _) in enumerate(found)})


def _chunk(
    needs: Needs, longest: int, activations: Activations, layer: int, opened: OpenedModel
) -> tuple[int, int]:
    """Tokens of the longest text that may pass through `layer` at once, and bytes they take."""
    cut = layer_cache(opened.text_config, layer) is not None
    sizes = [size for size in SIZES if cut and size < longest] or [longest]

    def taken(tokens: int) -> int:
        return KEPT_BYTES + int(activations.nbytes(layer, longest, tokens) / COUNTED)

    try:
        fitting = bisect_right(sizes, needs.room_bytes, key=taken)
        fewest = taken(sizes[0])
    except Exception:  # whatever the model's code raises where it wants values
        raise needs.too_small(longest, longest, needs.sequence_bytes(longest)) from None
    if not fitting:
        raise needs.too_small(sizes[0], longest, fewest)
    return sizes[fitting - 1], taken(sizes[fitting - 1])
