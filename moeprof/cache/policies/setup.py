"""What a policy may know before the first access."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Setup:
    """One cache: the layers that share it, its size, and what was learned on another window."""

    layers: int
    experts: int  # of each layer
    slots: int  # items that fit, at their mean size where sizes differ
    seed: int = 0
    counts: NDArray[np.int64] | None = None  # [items] uses in the window that a policy is fitted on

    @property
    def items(self) -> int:
        """Items that may want to be in the cache."""
        return self.layers * self.experts
