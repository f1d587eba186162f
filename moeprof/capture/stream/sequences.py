"""The token sequences that are streamed: their micro-batches, and their rows in the trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.trace import Phase


@dataclass(frozen=True)
class TokenSequence:
    """One request: its prompt and, where its completion is given, what is fed of that.

    The last token of a completion is never fed: a model that generates it has no use for its
    routing.
    """

    ids: NDArray[np.int64]  # [n] the prompt, then the completion but for its last token
    prompt_tokens: int
    output_tokens: int | None = None  # of the completion
    label: str | None = None
    name: str | None = None  # the engine's id of the request

    @classmethod
    def of(
        cls,
        prompt: Sequence[int],
        completion: Sequence[int] = (),
        label: str | None = None,
        name: str | None = None,
    ) -> TokenSequence:
        """The sequence of `prompt`, with teacher forcing over `completion`."""
        ids = np.array([*prompt, *completion[:-1]], np.int64)
        return cls(ids, len(prompt), len(completion) or None, label, name)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TokenColumns:
    """What a trace says of every token beside its routing: of one request after the other.

    As an engine would that serves them one at a time: a prompt is one step, then every token that
    it was answered with.
    """

    step: NDArray[np.int64]
    request: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.int8]

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> TokenColumns:
        """Of all tokens of `sequences`, in order."""
        lengths = np.array([len(sequence) for sequence in sequences])
        prompts = np.array([sequence.prompt_tokens for sequence in sequences])
        request = np.repeat(np.arange(len(sequences)), lengths)
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        decode = position >= prompts[request]
        begins = decode | (position == 0)
        return cls(
            step=np.cumsum(begins) - 1,
            request=request.astype(np.int32),
            position=position.astype(np.int32),
            phase=np.where(decode, Phase.DECODE, Phase.PREFILL).astype(np.int8),
        )


def micro_batches(
    sequences: Sequence[TokenSequence], rows_that_fit: Callable[[int], int]
) -> Iterator[list[int]]:
    """Numbers of sequences that run together: of equal length, so that nothing is padded.

    `rows_that_fit(length)` says how many may.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, sequence in enumerate(sequences):
        by_length[len(sequence)].append(number)
    for length, numbers in by_length.items():
        rows = rows_that_fit(length)
        yield from (numbers[start : start + rows] for start in range(0, len(numbers), rows))
