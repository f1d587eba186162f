"""The tokens of a step that a request needed the model to route."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Traffic:
    """The tokens of one step, or of several, that are traffic. n of T, padding included."""

    live: NDArray[np.bool_]  # [T]
    step: NDArray[np.int64]  # [n] index of the step
    request: NDArray[np.int32]  # [n]
    position: NDArray[np.int32]  # [n]
    phase: NDArray[np.int8]  # [n] of Phase
    token_id: NDArray[np.int32]  # [n]

    def __len__(self) -> int:
        return len(self.request)
